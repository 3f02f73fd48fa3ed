"""Changing a machine: its disk grows, its configuration is set, and it is restarted if that was asked for."""

from typing import Any
from uuid import UUID

from libs.common import quotas
from libs.common.operations import Json, Operation, Saga, Step, StepContext
from libs.common.operations import State as OperationState
from libs.common.uow import UnitOfWork
from services.vms.domain.cluster import SIZE_OPTIONS, sizing
from services.vms.domain.states import State, hostname
from services.vms.events import VmFailed, VmUpdated
from services.vms.operations.machines import Machines, grow_disk, start_machine
from services.vms.repository import VmRepository
from services.vms.service.records import enter, sizes, tell, touch

_TRIES = 30
_NEEDS_RESTART = ("cores", "memory_mib")


class UpdateVm:
    """The steps of `vm.update`. `memo.applied` tells what the machine already has, however the rest ends."""

    def __init__(self, machines: Machines, *, shutdown_timeout_s: int) -> None:
        self._machines = machines
        self._shutdown_timeout_s = shutdown_timeout_s

    def saga(self) -> Saga:
        return Saga(
            "vm.update",
            (
                Step("resize", self.resize, timeout_s=1800, max_attempts=_TRIES, interruptible=False),
                Step("configure", self.configure, max_attempts=_TRIES, interruptible=False),
                Step("shutdown", self.shutdown, timeout_s=900, max_attempts=_TRIES, interruptible=False),
                Step("start", self.start, timeout_s=900, max_attempts=_TRIES, interruptible=False),
            ),
            on_end=self.end,
        )

    async def resize(self, context: StepContext) -> Json:
        wanted = context.input["wanted"]
        if "disk_gib" in wanted:
            found = await self._machines.find(await self._machines.record(context))
            await grow_disk(self._machines, context, found, wanted["disk_gib"])
            _applied(context)["disk_gib"] = wanted["disk_gib"]
        return {}

    async def configure(self, context: StepContext) -> Json:
        """Set name, cores and memory. A running machine keeps its cores and memory until it is started again."""
        wanted = context.input["wanted"]
        found = await self._machines.find(await self._machines.record(context))
        options = sizing(found.config, cores=wanted.get("cores"), memory_mib=wanted.get("memory_mib"))
        if "name" in wanted:
            options["name"] = hostname(wanted["name"])
        if options:
            await found.cluster.configure(found.node, found.vmid, options, digest=found.config.digest)
            _applied(context).update({name: wanted[name] for name in wanted if name != "disk_gib"})
        runs = (await found.cluster.power(found.node, found.vmid)).status != "stopped"
        # What the machine takes while it runs, its hotplug options decide.
        pending = await found.cluster.pending(found.node, found.vmid) if runs else ()
        waits = any(change.name in SIZE_OPTIONS for change in pending)
        return {"runs": runs, "waits": waits, "node": found.node}

    async def shutdown(self, context: StepContext) -> Json:
        """Ask the guest to power off, and cut the power if it does not: only a fresh start takes the new sizes."""
        if not (context.input.get("restart") and context.results["configure"]["runs"]):
            return {}
        found = await self._machines.find(await self._machines.record(context))
        power = await found.cluster.power(found.node, found.vmid)
        if power.status != "stopped" or context.checkpoint:

            async def begin() -> str:
                options = {"timeout": self._shutdown_timeout_s, "forceStop": 1}
                return await found.cluster.act(found.node, found.vmid, "shutdown", options)

            recall = self._machines.recall(found, "hastop" if power.managed else "qmshutdown")
            await self._machines.task(context, found.cluster, "shutdown", begin, recall)
            if power.managed:
                await self._machines.until(context, found, "stopped")
        return {"off": True}

    async def start(self, context: StepContext) -> Json:
        if not context.results["shutdown"].get("off"):
            return {}
        found = await self._machines.find(await self._machines.record(context))
        managed = (await found.cluster.power(found.node, found.vmid)).managed
        await start_machine(self._machines, context, found, managed=managed)
        return {"on": True}

    async def end(self, uow: UnitOfWork, operation: Operation) -> None:
        """Record what the machine has now, and give back what was reserved for more than that."""
        vm = await VmRepository(uow.session).get(UUID(operation.resource_id), for_update=True)
        if vm is None:
            return
        applied: dict[str, Any] = operation.memo.get("applied", {})
        results = {step.name: step.result or {} for step in operation.steps}
        for name, value in applied.items():
            setattr(vm, name, value)
        if results["start"].get("on"):
            vm.restart_needed = False
        elif any(name in applied for name in _NEEDS_RESTART):
            vm.restart_needed = bool(results["configure"].get("waits", True))
        now = sizes(vm)
        usage = await quotas.release(
            uow.session, vm.owner_id, {name: vm.reserved.get(name, 0) - count for name, count in now.items()}
        )
        vm.reserved = now
        touch(uow, vm)
        if operation.state is OperationState.SUCCEEDED:
            vm.reason = None
            tell(uow, VmUpdated, vm, usage)
            if results["start"].get("on") and State(vm.state).settled:
                enter(uow, vm, State.RUNNING)
        else:
            vm.reason = str((operation.error or {}).get("detail", operation.message))
            tell(uow, VmFailed, vm, usage)


def _applied(context: StepContext) -> dict[str, Any]:
    applied: dict[str, Any] = context.memo.setdefault("applied", {})
    return applied
