"""Removing a machine: let go by the HA manager, off, gone with its disks and seed, then forgotten in the quotas."""

from uuid import UUID

import structlog

from libs.common import quotas
from libs.common.operations import Json, Operation, Saga, Step, StepContext
from libs.common.operations import State as OperationState
from libs.common.uow import UnitOfWork
from services.vms.domain.states import State
from services.vms.errors import MachineMissing, MachineNotOurs, VmNotFound, VmState
from services.vms.events import VmDeleted, VmFailed
from services.vms.models import Vm
from services.vms.operations.machines import Machines
from services.vms.operations.seeding import Seeding
from services.vms.repository import FOREIGN, VmidRepository, VmRepository
from services.vms.service.locating import Found
from services.vms.service.records import enter, tell, touch

_TRIES = 30

_log = structlog.get_logger()


class DeleteVm:
    """The steps of `vm.delete`."""

    def __init__(self, machines: Machines, seeding: Seeding) -> None:
        self._machines = machines
        self._seeding = seeding

    def saga(self) -> Saga:
        return Saga(
            "vm.delete",
            (
                Step("release", self.release, max_attempts=_TRIES, interruptible=False),
                Step("stop", self.stop, timeout_s=600, max_attempts=_TRIES, interruptible=False),
                Step("destroy", self.destroy, timeout_s=1800, max_attempts=_TRIES, interruptible=False),
                Step("seed", self.remove_seed, max_attempts=_TRIES, interruptible=False),
            ),
            on_end=self.end,
        )

    async def release(self, context: StepContext) -> Json:
        """Take it from the HA manager first, which would start it again; one that stays anyhow is left as it is."""
        found = await self._found(context)
        if found is not None and found.config.protected:
            raise VmState("It is protected on the cluster; an administrator has to take its protection off there first")
        if found is not None and (await self._machines.record(context)).ha:
            await found.cluster.ha.release(found.vmid)
        return {}

    async def remove_seed(self, context: StepContext) -> Json:
        try:
            vm = await self._machines.record(context)
        except VmNotFound:
            return {}
        await self._seeding.remove(context, vm, vm.node)
        return {}

    async def stop(self, context: StepContext) -> Json:
        found = await self._found(context)
        if found is not None:
            await self._machines.stop(context, found)
        return {}

    async def destroy(self, context: StepContext) -> Json:
        found = await self._found(context)
        if found is not None:
            try:
                await self._machines.destroy(context, found)
            except MachineMissing:
                _log.info("machine_gone_already", vmid=found.vmid)
        return {}

    async def _found(self, context: StepContext) -> Found | None:
        """The machine, or None if there is nothing of ours to remove."""
        try:
            vm = await self._machines.record(context)
        except VmNotFound:  # its creation was cancelled before
            return None
        if vm.vmid is None:
            return None
        try:
            return await self._machines.find(vm)
        except MachineMissing:
            if await self._machines.surely_gone(vm):
                return None
            raise
        except MachineNotOurs as error:
            context.memo["foreign"] = True
            _log.error("machine_not_ours", vmid=vm.vmid, node=error.node, vm_id=str(vm.id))
            return None

    async def end(self, uow: UnitOfWork, operation: Operation) -> None:
        machines = VmRepository(uow.session)
        vm = await machines.get(UUID(operation.resource_id), for_update=True)
        if vm is None:
            return
        if operation.state is not OperationState.SUCCEEDED:
            await _stay(uow, vm, operation)
            return
        if vm.vmid is not None:
            leases = VmidRepository(uow.session)
            if operation.memo.get("foreign"):
                now = uow.clock.now()
                await leases.mark(vm.cluster, vm.vmid, FOREIGN, node=vm.node, reason="not ours", now=now)
            else:
                await leases.release(vm.cluster, vm.vmid)
        usage = await quotas.release(uow.session, vm.owner_id, vm.reserved)
        touch(uow, vm)
        await machines.remove(vm)
        tell(uow, VmDeleted, vm, usage)


async def _stay(uow: UnitOfWork, vm: Vm, operation: Operation) -> None:
    """The machine is not gone; if nothing was taken from it yet, it is what it was."""
    reason = str((operation.error or {}).get("detail", operation.message))
    if any(step.behind for step in operation.steps):
        enter(uow, vm, State.ERROR, reason=reason)
    else:
        await _keep(uow, vm, operation)
    if operation.state is not OperationState.CANCELLED:
        vm.reason = reason
        tell(uow, VmFailed, vm)


async def _keep(uow: UnitOfWork, vm: Vm, operation: Operation) -> None:
    """The machine stays: as it was, or as its creation, if that ended meanwhile, has left it."""
    if State(vm.state) is not State.DELETING:
        return
    was, reason = State(operation.input.get("was", State.ERROR)), operation.input.get("reason")
    if was is State.CREATING and await VmRepository(uow.session).unfinished(vm.id) is None:
        # Whether it runs, the cluster's list tells soon.
        was, reason = (State.ERROR, vm.reason) if vm.vmid is None else (State.STOPPED, None)
    enter(uow, vm, was, reason=reason)
