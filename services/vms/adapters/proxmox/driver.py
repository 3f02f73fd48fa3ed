"""The driver of one Proxmox VE cluster: checked ids in, checked shapes out, one list of states and one of tasks."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from opentelemetry.trace import SpanKind

from libs.common.tasks import cancel
from libs.common.telemetry import tracer
from services.vms.adapters.proxmox import parsing
from services.vms.adapters.proxmox.breaker import Breakers
from services.vms.adapters.proxmox.calls import begin, machine_path, read, upid_of
from services.vms.adapters.proxmox.console import Displays
from services.vms.adapters.proxmox.failures import task_failure, unanswered
from services.vms.adapters.proxmox.files import StorageFiles
from services.vms.adapters.proxmox.ha import HaManager
from services.vms.adapters.proxmox.history import Histories
from services.vms.adapters.proxmox.session import Session
from services.vms.adapters.proxmox.snapshots import Snapshots
from services.vms.adapters.proxmox.tasks import TaskWatch
from services.vms.domain.cluster import (
    Inventory,
    MachineConfig,
    PendingChange,
    Power,
    Template,
    kind_of,
    node_of,
    safe_name,
    safe_slot,
    safe_upid,
    safe_vmid,
)
from services.vms.domain.storages import StorageChoice
from services.vms.errors import MachineMissing, NodeDown, ProxmoxRefused, UnsafeId
from services.vms.settings import ClusterSettings

T = TypeVar("T")
_VERBS = frozenset({"start", "shutdown", "stop", "reboot", "suspend", "resume"})
_TEMPLATE_AGE_S = 300.0
_TASK_LIMIT = 50


class ProxmoxCluster:
    """Implements `ports.Cluster` with API calls that work on Proxmox VE 7.4 to 9."""

    def __init__(
        self,
        settings: ClusterSettings,
        *,
        timeout_s: float = 45.0,
        connections: int = 16,
        task_poll_s: float = 1.0,
        breakers: Breakers | None = None,
    ) -> None:
        self.name = settings.name
        self.storages = StorageChoice(settings.image_storage, settings.import_storage, settings.iso_storage)
        self._breakers = breakers or Breakers(failures=5, open_s=15.0)
        self._session = Session(settings, timeout_s=timeout_s, connections=connections, breakers=self._breakers)
        self.displays = Displays(settings, self._session)
        self.snapshots = Snapshots(self._session)
        self.histories = Histories(self._session)
        self.files = StorageFiles(self._session)
        self.ha = HaManager(self._session)
        self._watch = TaskWatch(self._list_tasks, self._read_task, self._online, poll_s=task_poll_s)
        self._seen: tuple[float, Inventory] | None = None
        self._looking: asyncio.Task[Inventory] | None = None
        self._templates: dict[tuple[int, str], tuple[float, Template]] = {}

    async def close(self) -> None:
        await self._watch.close()
        if self._looking is not None:
            await cancel(self._looking)
        await self._session.close()

    async def check(self) -> None:
        """Ask for a sign of life."""
        await self._get("version", parsing.entry)

    def trouble(self, node: str) -> str | None:
        return self._breakers.trouble(node)

    # Everything at once

    async def inventory(self, *, max_age_s: float) -> Inventory:
        """One call for however many ask at a time; an answer that was under way already counts as older."""
        asked_at = _now()
        while self._seen is None or self._seen[0] < asked_at - max_age_s:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(), name=f"inventory-{self.name}")
                self._looking.add_done_callback(_heard)
            await asyncio.shield(self._looking)
        return self._seen[1]

    def seen(self, *, max_age_s: float) -> Inventory | None:
        return None if self._seen is None or self._seen[0] < _now() - max_age_s else self._seen[1]

    async def _look(self) -> Inventory:
        begun_at = _now()
        found = await self._get("cluster/resources", parsing.inventory)
        self._seen = (begun_at, found)
        return found

    async def templates(self, *, max_age_s: float) -> Sequence[Template]:
        """Templates on nodes that answer; each one's configuration is read once in a while, not every time."""
        known = await self.inventory(max_age_s=max_age_s)
        if not known.machines:  # a token that lost its privileges sees nothing, and the templates are still there
            return [template for _, template in self._templates.values()]
        found = [machine for machine in known.machines.values() if machine.template]
        there = {(machine.vmid, machine.node) for machine in found}
        self._templates = {key: read for key, read in self._templates.items() if key in there}
        lately = _now() - _TEMPLATE_AGE_S
        told = [self._templates.get((machine.vmid, machine.node), (0.0, None)) for machine in found]
        if all(template is not None and read_at >= lately for read_at, template in told):
            return [template for _, template in told if template is not None]
        read = await asyncio.gather(
            *(self._template(machine.vmid, machine.node, known) for machine in found), return_exceptions=True
        )
        for outcome in read:
            if isinstance(outcome, BaseException) and not isinstance(outcome, MachineMissing | NodeDown):
                raise outcome
        return [one for one in read if isinstance(one, Template)]

    async def _template(self, vmid: int, node: str, known: Inventory) -> Template:
        read_at, template = self._templates.get((vmid, node), (0.0, None))
        if template is None or _now() - read_at > _TEMPLATE_AGE_S:
            if template is not None and not known.online(node):
                return template
            template = parsing.template(known.machines[vmid], await self.config(node, vmid), known)
            self._templates[vmid, node] = (_now(), template)
        return template

    # One machine

    async def config(self, node: str, vmid: int) -> MachineConfig:
        return await self._get(f"{machine_path(node, vmid)}/config", parsing.config, node=node)

    async def power(self, node: str, vmid: int) -> Power:
        return await self._get(f"{machine_path(node, vmid)}/status/current", parsing.power, node=node)

    async def pending(self, node: str, vmid: int) -> Sequence[PendingChange]:
        return await self._get(f"{machine_path(node, vmid)}/pending", parsing.pending, node=node)

    async def addresses(self, node: str, vmid: int) -> Sequence[str]:
        path = f"{machine_path(node, vmid)}/agent/network-get-interfaces"
        try:
            return await self._get(path, parsing.addresses, node=node)
        except MachineMissing:
            raise
        except ProxmoxRefused:  # no agent configured, or none that answers yet
            return []

    async def clone(self, template: Template, vmid: int, *, name: str, notes: str, target: str) -> str:
        path = f"{machine_path(template.node, template.vmid)}/clone"
        options: dict[str, Any] = {"newid": safe_vmid(vmid), "name": name, "description": notes}
        if safe_name(target) != template.node:
            options["target"] = target
        return await self._task("post", path, template.node, **options)

    async def create(self, node: str, vmid: int, options: Mapping[str, str | int]) -> str:
        path = f"nodes/{safe_name(node)}/qemu"
        return await self._task("post", path, node, vmid=safe_vmid(vmid), **options)

    async def convert(self, node: str, vmid: int) -> str:
        return await self._task("post", f"{machine_path(node, vmid)}/template", node)

    async def configure(self, node: str, vmid: int, options: Mapping[str, str | int], *, digest: str) -> None:
        given = dict(options)
        if "sshkeys" in given:
            # Percent-encoded as a value; the form encodes it once more.
            given["sshkeys"] = quote(str(given["sshkeys"]), safe="")
        if digest:
            given["digest"] = digest
        answer = await self._session.call("put", f"{machine_path(node, vmid)}/config", node=node, **given)
        if answer is not None:
            raise unanswered("not the answer of a change", node=node, changes=True)

    async def resize(self, node: str, vmid: int, slot: str, gib: int) -> str | None:
        path = f"{machine_path(node, vmid)}/resize"
        answer = await self._session.call("put", path, node=node, disk=safe_slot(slot), size=f"{int(gib)}G")
        return None if answer is None else upid_of(answer, node)

    async def act(self, node: str, vmid: int, verb: str, options: Mapping[str, int]) -> str:
        if verb not in _VERBS:
            raise UnsafeId("Not a power action")
        return await self._task("post", f"{machine_path(node, vmid)}/status/{verb}", node, **options)

    async def destroy(self, node: str, vmid: int) -> str:
        # In the query: pveproxy refuses a DELETE with a body.
        options = {"purge": 1, "destroy-unreferenced-disks": 1}
        return await self._task("delete", machine_path(node, vmid), node, **options)

    # Tasks

    async def tasks(self, node: str, vmid: int, kind: str, *, since: float) -> Sequence[str]:
        path = f"nodes/{safe_name(node)}/tasks"
        options = {"vmid": safe_vmid(vmid), "typefilter": kind, "source": "all", "limit": _TASK_LIMIT}
        found = await self._get(path, parsing.entries, node=node, since=int(since), **options)
        newest = sorted(found, key=lambda item: parsing.whole(item.get("starttime")), reverse=True)
        return [str(item["upid"]) for item in newest if "upid" in item]

    async def wait(self, upid: str) -> None:
        named = {"telar.cluster": self.name, "telar.node": node_of(upid), "telar.upid": upid}
        with tracer().start_as_current_span(
            f"task {kind_of(upid)}",
            kind=SpanKind.CLIENT,
            attributes=named,
            record_exception=False,  # the step tells why it failed
        ):
            failure = task_failure(await self._watch.wait(upid), node=node_of(upid))
            if failure is not None:
                raise failure

    async def interrupt(self, upid: str) -> None:
        node = node_of(upid)
        await self._session.call("delete", f"nodes/{safe_name(node)}/tasks/{safe_upid(upid)}", node=node)

    async def _list_tasks(self) -> Sequence[Mapping[str, Any]]:
        return await self._get("cluster/tasks", parsing.entries)

    async def _read_task(self, upid: str) -> Mapping[str, Any]:
        node = node_of(upid)
        return await self._get(f"nodes/{safe_name(node)}/tasks/{safe_upid(upid)}/status", parsing.entry, node=node)

    async def _online(self, node: str) -> bool:
        return (await self.inventory(max_age_s=0)).online(node)

    # Calls

    async def _get(self, path: str, parse: Callable[[object], T], *, node: str | None = None, **options: Any) -> T:
        return await read(self._session, path, parse, node=node, **options)

    async def _task(self, method: str, path: str, node: str, **options: Any) -> str:
        return await begin(self._session, method, path, node, **options)


def _heard(look: asyncio.Task[Inventory]) -> None:
    """Take note of a failed look whose askers were all cancelled, so that asyncio does not report it as forgotten."""
    if not look.cancelled():
        look.exception()


def _now() -> float:
    return asyncio.get_running_loop().time()
