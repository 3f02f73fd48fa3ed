"""Volumes: one file or block device of a storage. Disk bytes are metadata only."""

from dataclasses import dataclass
from typing import Any

CLOUDINIT_BYTES = 4 * 1024**2


@dataclass(slots=True)
class Volume:
    """`node` is empty on shared storage, `size` and `used` are bytes, `os` names the bootable system on the disk.

    `members` are the disks inside an archive and their sizes.
    """

    volid: str
    node: str
    content: str
    format: str
    size: int
    used: int
    ctime: int
    vmid: int | None = None
    parent: str | None = None
    os: str | None = None
    notes: str | None = None
    protected: bool = False
    members: dict[str, int] | None = None

    @property
    def storage(self) -> str:
        return self.volid.split(":", 1)[0]

    @property
    def name(self) -> str:
        return self.volid.split(":", 1)[1]

    @property
    def is_base(self) -> bool:
        return self.name.rsplit("/", 1)[-1].startswith("base-")

    def document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}
