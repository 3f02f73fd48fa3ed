"""Adopting a machine: it gets Telar's mark and tag, and its record the state that it is in."""

from uuid import UUID

from libs.common import quotas
from libs.common.operations import Json, Operation, Saga, Step, StepContext
from libs.common.operations import State as OperationState
from libs.common.uow import UnitOfWork
from services.vms.domain.cluster import carries_mark, mark_of, without_mark
from services.vms.domain.states import State, seen_as
from services.vms.events import VmDeleted
from services.vms.operations.machines import Machines
from services.vms.repository import VmidRepository, VmRepository
from services.vms.service.records import enter, tell, touch
from services.vms.service.resolving import ADOPT

_TRIES = 10


class AdoptVm:
    """The steps of `vm.adopt`."""

    def __init__(self, machines: Machines, *, tag: str) -> None:
        self._machines = machines
        self._tag = tag

    def saga(self) -> Saga:
        return Saga(
            ADOPT,
            (
                Step("mark", self.mark, max_attempts=_TRIES, interruptible=False),
                Step("look", self.look, max_attempts=_TRIES, interruptible=False),
            ),
            on_end=self.end,
        )

    async def mark(self, context: StepContext) -> Json:
        """Write the mark over any earlier one; the same again changes nothing."""
        vm = await self._machines.record(context)
        cluster, node, vmid = self._machines.fleet.get(vm.cluster), vm.node or "", vm.vmid or 0
        config = await cluster.config(node, vmid)
        options: dict[str, str | int] = {}
        if not carries_mark(config.notes, str(vm.id)):
            options["description"] = f"{without_mark(config.notes)}\n{mark_of(str(vm.id))}".strip()
        if self._tag not in config.tags:
            options["tags"] = ";".join(sorted(config.tags | {self._tag}))
        if options:
            await cluster.configure(node, vmid, options, digest=config.digest)
        return {}

    async def look(self, context: StepContext) -> Json:
        found = await self._machines.find(await self._machines.record(context))
        power = await found.cluster.power(found.node, found.vmid)
        return {"status": power.status, "lock": power.lock, "node": found.node}

    async def end(self, uow: UnitOfWork, operation: Operation) -> None:
        """Record its state, or forget the record and what it held."""
        vm = await VmRepository(uow.session).get(UUID(operation.resource_id), for_update=True)
        if vm is None:
            return
        if operation.state is OperationState.SUCCEEDED:
            seen = next(step.result or {} for step in operation.steps if step.name == "look")
            vm.node = seen["node"]
            enter(uow, vm, seen_as(seen["status"], seen["lock"]) or State.STOPPED)
            return
        if vm.vmid is not None:
            await VmidRepository(uow.session).release(vm.cluster, vm.vmid)
        usage = await quotas.release(uow.session, vm.owner_id, vm.reserved)
        touch(uow, vm)
        await VmRepository(uow.session).remove(vm)
        tell(uow, VmDeleted, vm, usage)
