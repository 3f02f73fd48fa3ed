"""Storages and their volumes: what lies where, how big it is, what is based on what."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from libs.pvesim.clock import LabClock
from libs.pvesim.cluster.nodes import GIB, Nodes
from libs.pvesim.errors import PveError
from libs.pvesim.locks import Locks
from libs.pvesim.settings import LabSettings
from libs.pvesim.storage.kinds import FOLDERS, STORAGES, Storage
from libs.pvesim.storage.volume import Volume
from libs.pvesim.store import Store

_LINKED_SHARE = 0.02
_DISK_NUMBER = re.compile(r"-disk-(\d+)")


class Storages:
    """All volumes of the cluster by (node, volume id)."""

    def __init__(
        self,
        settings: LabSettings,
        store: Store,
        clock: LabClock,
        nodes: Nodes,
        locks: Locks,
        loaded: dict[str, dict[str, Any]],
        configured: dict[str, dict[str, Any]],
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._nodes = nodes
        self._locks = locks
        self.by_id = {key: Storage.load(document) for key, document in configured.items()}
        self._volumes: dict[tuple[str, str], Volume] = {}
        self._owned: dict[int, set[tuple[str, str]]] = {}
        self._used: dict[tuple[str, str], int] = {}
        for document in loaded.values():
            self._insert(Volume(**document))
        for storage in STORAGES if not configured else ():
            self.configure(storage)

    def configure(self, storage: Storage) -> None:
        """Add a storage, or write a changed one."""
        self.by_id[storage.id] = storage
        self._store.put("storage", storage.id, storage.document())

    def deconfigure(self, storage_id: str) -> None:
        """Forget a storage; what lies on it stays where it is, out of sight."""
        del self.by_id[storage_id]
        self._store.delete("storage", storage_id)

    def __iter__(self) -> Iterator[Volume]:
        return iter(list(self._volumes.values()))

    def get(self, storage_id: str) -> Storage:
        storage = self.by_id.get(storage_id)
        if storage is None:
            raise PveError(f"storage '{storage_id}' does not exist")
        return storage

    def usable(self, storage_id: str, node: str) -> Storage:
        """A storage that this node may use; raises the texts of unknown, disabled and unsuitable ones."""
        storage = self.get(storage_id)
        if storage.disabled:
            raise PveError(f"storage '{storage_id}' is disabled")
        if not self.serves(storage, node):
            raise PveError(f"storage '{storage_id}' is not available on node '{node}'")
        return storage

    def serves(self, storage: Storage, node: str) -> bool:
        """Whether a storage is meant for this node."""
        return not storage.nodes or node in storage.nodes

    def scope(self, storage: Storage, node: str) -> str:
        return "" if storage.shared else node

    def total_bytes(self, storage: Storage, node: str) -> int:
        if storage.shared:
            return self._settings.shared_gib * GIB
        machine = self._nodes.by_name[node].settings
        return (machine.local_gib if storage.path is not None else machine.lvm_gib) * GIB

    def used_bytes(self, storage: Storage, node: str) -> int:
        return self._used.get((self.scope(storage, node), storage.id), 0)

    def folder(self, storage: Storage, node: str, content: str) -> Path:
        """The lab's own folder for the files of a content type."""
        return (
            self._settings.data_dir
            / "storage"
            / (self.scope(storage, node) or "cluster")
            / storage.id
            / FOLDERS[content]
        )

    def file_of(self, volume: Volume) -> Path:
        """Where an uploaded or downloaded volume's bytes lie."""
        storage = self.get(volume.storage)
        return self.folder(storage, volume.node, volume.content) / volume.name.split("/", 1)[1]

    def find(self, node: str, volid: str) -> Volume | None:
        return self._volumes.get(("", volid)) or self._volumes.get((node, volid))

    def require(self, node: str, volid: str) -> Volume:
        """The volume; raises the errors for a malformed id, an unknown storage or a missing volume."""
        storage_id, separator, _ = volid.partition(":")
        if not separator:
            raise PveError(f"unable to parse volume ID '{volid}'")
        self.get(storage_id)
        volume = self.find(node, volid)
        if volume is None:
            raise PveError(f"volume '{volid}' does not exist")
        return volume

    def source(self, node: str, volid: str) -> Volume:
        """What a disk is imported from: a volume, or a disk inside an archive (`…/x.ova/disk.vmdk`)."""
        archive, separator, member = volid.partition(".ova/")
        if not separator:
            return self.require(node, volid)
        whole = self.require(node, f"{archive}.ova")
        size = (whole.members or {}).get(member)
        if size is None:
            raise PveError(f"volume '{volid}' does not exist")
        kind = member.rpartition(".")[2]
        return Volume(volid, whole.node, whole.content, kind, size, whole.used, whole.ctime)

    def owned(self, vmid: int) -> list[Volume]:
        return [self._volumes[key] for key in sorted(self._owned.get(vmid, ()))]

    def children(self, volume: Volume) -> list[Volume]:
        return [other for other in self._volumes.values() if other.parent == volume.volid and other.node == volume.node]

    def _insert(self, volume: Volume) -> None:
        key = (volume.node, volume.volid)
        self._volumes[key] = volume
        place = (volume.node, volume.storage)
        self._used[place] = self._used.get(place, 0) + volume.used
        if volume.vmid is not None:
            self._owned.setdefault(volume.vmid, set()).add(key)

    def put(self, volume: Volume) -> Volume:
        """Add a volume, or write a changed one."""
        self._remove((volume.node, volume.volid))
        self._insert(volume)
        self._store.put("volume", f"{volume.node}|{volume.volid}", volume.document())
        return volume

    def _remove(self, key: tuple[str, str]) -> Volume | None:
        volume = self._volumes.pop(key, None)
        if volume is not None:
            self._used[volume.node, volume.storage] -= volume.used
            if volume.vmid is not None:
                self._owned[volume.vmid].discard(key)
        return volume

    def forget(self, volume: Volume) -> None:
        self._remove((volume.node, volume.volid))
        self._store.delete("volume", f"{volume.node}|{volume.volid}")

    def resize(self, volume: Volume, size: int) -> None:
        volume.size = size
        self.put(volume)

    async def allocate(
        self,
        node: str,
        storage_id: str,
        vmid: int,
        *,
        size: int,
        format: str | None = None,  # noqa: A002  (the API's own name)
        suffix: str | None = None,
        base: Volume | None = None,
        used: int = 0,
        os: str | None = None,
    ) -> Volume:
        """Make a volume under the storage's lock. `base` makes a linked clone, `suffix` replaces `disk-<n>`.

        Raises the lock's `got timeout` error, or the storage's own when it is full.
        """
        storage = self.usable(storage_id, node)
        scope = self.scope(storage, node)
        await self._locks.storage_turn(scope, storage.id, self._settings.allocation_s)
        used = int(base.used * _LINKED_SHARE) if base is not None else used
        if self.used_bytes(storage, node) + used > self.total_bytes(storage, node):
            raise PveError(f"unable to create image on '{storage.id}': No space left on device")
        extension = format or (base.format if base is not None else storage.formats[0])
        if extension not in storage.formats:
            extension = storage.formats[0]
        name = self._name(storage, scope, vmid, suffix, extension, base)
        parent = base.volid if base is not None else None
        volume = Volume(
            f"{storage.id}:{name}", scope, "images", extension, size, used, self._clock.epoch(), vmid, parent, os
        )
        return self.put(volume)

    def _name(
        self, storage: Storage, scope: str, vmid: int, suffix: str | None, extension: str, base: Volume | None
    ) -> str:
        if suffix is None:
            taken = {
                int(match[1])
                for volume in self.owned(vmid)
                if (volume.node, volume.storage) == (scope, storage.id)
                and (match := _DISK_NUMBER.search(volume.name.rsplit("/", 1)[-1])) is not None
            }
            suffix = f"disk-{next(n for n in range(len(taken) + 1) if n not in taken)}"
        plain = f"{vmid}/vm-{vmid}-{suffix}.{extension}" if storage.path is not None else f"vm-{vmid}-{suffix}"
        # An LVM-thin snapshot does not tell in its name what it was made from.
        return plain if base is None or storage.type == "lvmthin" else f"{base.name}/{plain}"

    async def free(self, volume: Volume, *, still_used: str = "linked clones") -> None:
        """Remove a volume under its storage's lock; a base with children stays, except on LVM-thin."""
        storage = self.get(volume.storage)
        await self._locks.storage_turn(volume.node, storage.id, self._settings.allocation_s)
        self.check_unused(volume, still_used)
        self.forget(volume)

    def check_unused(self, volume: Volume, still_used: str) -> None:
        if self.get(volume.storage).type != "lvmthin" and volume.is_base and self.children(volume):
            raise PveError(f"base volume '{volume.volid}' is still in use by {still_used}")

    async def hand_over(self, volume: Volume, vmid: int) -> Volume:
        """Rename a disk so that it belongs to another machine."""
        storage = self.get(volume.storage)
        await self._locks.storage_turn(volume.node, storage.id, self._settings.allocation_s)
        self.forget(volume)
        name = self._name(storage, volume.node, vmid, None, volume.format, None)
        volume.volid, volume.vmid = f"{storage.id}:{name}", vmid
        return self.put(volume)

    def make_base(self, volume: Volume) -> Volume:
        """Rename `vm-<id>-…` to `base-<id>-…`."""
        head, _, last = volume.name.rpartition("/")
        renamed = last.replace("vm-", "base-", 1)
        self.forget(volume)
        volume.volid = f"{volume.storage}:{head}/{renamed}" if head else f"{volume.storage}:{renamed}"
        return self.put(volume)
