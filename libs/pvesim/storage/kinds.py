"""Storages by type: what each can hold, share, snapshot and clone, and how one is configured."""

from dataclasses import dataclass, field
from typing import Any

from libs.pvesim.errors import PveError
from libs.pvesim.releases import Release

FOLDERS = {
    "iso": "template/iso",
    "vztmpl": "template/cache",
    "import": "import",
    "snippets": "snippets",
    "backup": "dump",
}
_FILE_FORMATS = ("raw", "qcow2", "vmdk")
_FILES = ("backup", "import", "iso", "snippets", "vztmpl")
_DISKS = ("images", "rootdir")
_CHAIN = "snapshot-as-volume-chain"


@dataclass(frozen=True, slots=True)
class Kind:
    """A storage type. `shared` None leaves it to the configuration; `needs` are options without which none is made."""

    content: tuple[str, ...]
    formats: tuple[str, ...]
    needs: tuple[str, ...]
    shared: bool | None = False
    snapshots: bool = True
    bases: bool = True
    latest_only: bool = False


KINDS = {
    "btrfs": Kind((*_FILES, *_DISKS), ("raw",), ("path",), shared=None),
    "cephfs": Kind(_FILES, _FILE_FORMATS, (), shared=True),
    "cifs": Kind((*_FILES, *_DISKS), _FILE_FORMATS, ("server", "share"), shared=True),
    "dir": Kind((*_FILES, *_DISKS), _FILE_FORMATS, ("path",), shared=None),
    "lvm": Kind(_DISKS, ("raw",), ("vgname",), shared=None, snapshots=False, bases=False),
    "lvmthin": Kind(_DISKS, ("raw",), ("vgname", "thinpool")),
    "nfs": Kind((*_FILES, *_DISKS), _FILE_FORMATS, ("server", "export"), shared=True),
    "rbd": Kind(_DISKS, ("raw",), ("pool",), shared=True),
    "zfspool": Kind(_DISKS, ("raw",), ("pool",), latest_only=True),
}
_FILE_KINDS = frozenset(name for name, kind in KINDS.items() if "iso" in kind.content)


@dataclass(frozen=True, slots=True)
class Storage:
    """One configured storage. `nodes` is empty for all nodes; `options` are those of its type."""

    id: str
    type: str
    content: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    disabled: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return KINDS[self.type]

    @property
    def shared(self) -> bool:
        return bool(self.options.get("shared")) if self.kind.shared is None else self.kind.shared

    @property
    def path(self) -> str | None:
        """The mount point of a file storage, None for block storage."""
        mounted = f"/mnt/pve/{self.id}" if self.type in _FILE_KINDS else None
        path: str | None = self.options.get("path", mounted)
        return path

    @property
    def formats(self) -> tuple[str, ...]:
        """Image formats, the default first."""
        chained = self.type == "lvm" and self.options.get(_CHAIN)
        return (*self.kind.formats, "qcow2") if chained else self.kind.formats

    def snapshots(self, image_format: str) -> bool:
        """Whether images of a format can be snapshotted here."""
        if self.type == "btrfs":
            return True
        if self.path is not None or self.options.get(_CHAIN):
            return image_format == "qcow2"
        return self.kind.snapshots

    @property
    def rolls_back_latest_only(self) -> bool:
        return self.kind.latest_only or bool(self.options.get(_CHAIN))

    def document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def load(cls, document: dict[str, Any]) -> "Storage":
        return cls(**document | {name: tuple(document[name]) for name in ("content", "nodes")})


STORAGES = (
    Storage("local", "dir", _FILES, options={"path": "/var/lib/vz"}),
    Storage("local-lvm", "lvmthin", _DISKS, options={"vgname": "pve", "thinpool": "data"}),
    Storage(
        "shared",
        "nfs",
        ("images", "import", "iso", "snippets", "vztmpl"),
        options={"server": "10.20.0.5", "export": "/export/pve"},
    ),
)


def configured(storage_id: str, kind: str, options: dict[str, Any], release: Release) -> Storage:
    """A storage as the create call asks for it; raises the errors of types, options and contents that cannot be."""
    known = KINDS.get(kind)
    if known is None:
        raise PveError(f"create storage failed: storages of type '{kind}' are not part of this lab")
    for name in known.needs:
        if not options.get(name):
            raise PveError(f"create storage failed: missing value for required option '{name}'")
    default = tuple(name for name in known.content if name in {"images", "rootdir"})
    storage = Storage(storage_id, kind, default)
    return changed(storage, options, release)


def changed(storage: Storage, options: dict[str, Any], release: Release) -> Storage:
    """The storage with other options; None removes one."""
    left = dict(options)
    content = left.pop("content", storage.content)
    nodes, disabled = left.pop("nodes", storage.nodes), left.pop("disable", storage.disabled)
    for name in content or ():
        if name not in storage.kind.content or (name == "import" and not release.has((8, 2))):
            raise PveError(f"storage does not support content type '{name}'")
    merged = {name: value for name, value in (storage.options | left).items() if value is not None}
    return Storage(storage.id, storage.type, tuple(sorted(content or ())), tuple(nodes or ()), bool(disabled), merged)
