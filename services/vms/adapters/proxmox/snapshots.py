"""Snapshots of machines on a cluster."""

from datetime import UTC, datetime

from services.vms.adapters.proxmox import parsing
from services.vms.adapters.proxmox.calls import begin, machine_path, read
from services.vms.adapters.proxmox.session import Session
from services.vms.domain.cluster import MachineConfig
from services.vms.domain.snapshots import Snapshot, SnapshotTree, in_order, safe_snapshot, unmarked


class Snapshots:
    """Implements `ports.Snapshots`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def tree(self, node: str, vmid: int) -> SnapshotTree:
        return await read(self._session, f"{machine_path(node, vmid)}/snapshot", _tree, node=node)

    async def possible(self, node: str, vmid: int) -> bool:
        path = f"{machine_path(node, vmid)}/feature"
        return await read(self._session, path, _has_feature, node=node, feature="snapshot")

    async def config(self, node: str, vmid: int, name: str) -> MachineConfig:
        path = f"{machine_path(node, vmid)}/snapshot/{safe_snapshot(name)}/config"
        return await read(self._session, path, parsing.config, node=node)

    async def take(self, node: str, vmid: int, name: str, *, description: str, memory: bool) -> str:
        options = {"snapname": safe_snapshot(name), "description": description, "vmstate": int(memory)}
        return await begin(self._session, "post", f"{machine_path(node, vmid)}/snapshot", node, **options)

    async def roll_back(self, node: str, vmid: int, name: str) -> str:
        path = f"{machine_path(node, vmid)}/snapshot/{safe_snapshot(name)}/rollback"
        return await begin(self._session, "post", path, node)

    async def delete(self, node: str, vmid: int, name: str) -> str:
        path = f"{machine_path(node, vmid)}/snapshot/{safe_snapshot(name)}"
        return await begin(self._session, "delete", path, node)


def _tree(answer: object) -> SnapshotTree:
    """The list, of which the entry `current` is no snapshot but the machine itself."""
    found: list[Snapshot] = []
    current: str | None = None
    for item in parsing.entries(answer):
        parent = str(item["parent"]) if item.get("parent") else None
        if item.get("name") == "current":
            current = parent
            continue
        description, taken_by = unmarked(str(item.get("description") or ""))
        taken_at = parsing.whole(item.get("snaptime"))
        found.append(
            Snapshot(
                name=str(item.get("name", "")),
                description=description,
                taken_at=datetime.fromtimestamp(taken_at, UTC) if taken_at else None,
                parent=parent,
                includes_memory=bool(item.get("vmstate")) and item.get("vmstate") != "0",
                taken_by=taken_by,
            )
        )
    return SnapshotTree(in_order(found), current)


def _has_feature(answer: object) -> bool:
    return parsing.whole(parsing.entry(answer).get("hasFeature")) == 1
