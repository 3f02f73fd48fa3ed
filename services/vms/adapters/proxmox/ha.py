"""High availability: a machine as the HA manager's resource, and the nodes it may run on, in both generations' words.

Proxmox VE 9 has rules, earlier releases have groups.
"""

import re
from collections.abc import Sequence
from typing import Any

from services.vms.adapters.proxmox import parsing
from services.vms.adapters.proxmox.session import Session
from services.vms.domain.cluster import safe_name, safe_vmid
from services.vms.errors import ProxmoxRefused

_RESOURCES, _RULES, _GROUPS = "cluster/ha/resources", "cluster/ha/rules", "cluster/ha/groups"
_RULES_SINCE = 9
_DEFINED = re.compile(r"already defined")
_GONE = re.compile(r"not HA managed|no such (?:ha )?(?:resource|rule|group)|does not exist")


class HaManager:
    """Implements `ports.HighAvailability`. Everything may be asked for twice."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rules: bool | None = None

    async def protect(self, vmid: int, *, nodes: Sequence[str], started: bool) -> None:
        sid, name = _names(vmid)
        state = "started" if started else "stopped"
        where = ",".join(safe_name(node) for node in nodes)
        if await self._has_rules():
            await self._put(_RESOURCES, sid, sid=sid, state=state)
            await self._put(_RULES, name, rule=name, type="node-affinity", resources=sid, nodes=where)
            return
        await self._put(_GROUPS, name, group=name, nodes=where)
        await self._put(_RESOURCES, sid, sid=sid, state=state, group=name)

    async def release(self, vmid: int) -> None:
        sid, name = _names(vmid)
        await self._delete(f"{_RESOURCES}/{sid}")
        await self._delete(f"{_RULES if await self._has_rules() else _GROUPS}/{name}")

    async def _has_rules(self) -> bool:
        if self._rules is None:
            told = parsing.entry(await self._session.call("get", "version"))
            self._rules = int(str(told.get("release", "0")).partition(".")[0] or 0) >= _RULES_SINCE
        return self._rules

    async def _put(self, path: str, name: str, **fields: Any) -> None:
        """Make an entry, or bring one that is there to these values."""
        try:
            await self._session.call("post", path, **fields)
        except ProxmoxRefused as error:
            if not _DEFINED.search(error.reason):
                raise
            fixed = ("sid", "rule", "group") if path != _RESOURCES else ("sid",)
            changed = {key: value for key, value in fields.items() if key not in fixed}
            await self._session.call("put", f"{path}/{name}", **changed)

    async def _delete(self, path: str) -> None:
        try:
            await self._session.call("delete", path)
        except ProxmoxRefused as error:
            if not _GONE.search(error.reason):
                raise


def _names(vmid: int) -> tuple[str, str]:
    """A machine's resource id, and the name of its rule or group."""
    return f"vm:{safe_vmid(vmid)}", f"telar-vm-{safe_vmid(vmid)}"
