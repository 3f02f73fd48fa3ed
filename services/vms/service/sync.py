"""Keeps the records' states true: what clusters show is compared with them, for all machines at once."""

from datetime import timedelta

import structlog

from libs.common.errors import TelarError
from libs.common.uow import UnitOfWorkFactory
from services.vms.domain.cluster import Inventory
from services.vms.domain.states import State, seen_as
from services.vms.models import Vm
from services.vms.ports import Cluster
from services.vms.repository import VmRepository
from services.vms.service.fleet import Fleet
from services.vms.service.records import enter, touch

_log = structlog.get_logger()


class StateSync:
    """One list per cluster tells of guests that powered themselves off, and of machines moved to another node.

    A list lags behind: what was known at first hand in the last `lag_s` is believed more.
    """

    def __init__(self, uow: UnitOfWorkFactory, fleet: Fleet, *, lag_s: float) -> None:
        self._uow = uow
        self._fleet = fleet
        self._lag = timedelta(seconds=lag_s)

    async def run(self) -> None:
        for cluster in self._fleet:
            try:
                await self._run(cluster)
            except TelarError as error:
                _log.warning("states_not_synchronised", cluster=cluster.name, error=error.slug)

    async def _run(self, cluster: Cluster) -> None:
        known = await cluster.inventory(max_age_s=0)
        async with self._uow() as uow:
            settled = await VmRepository(uow.session).settled(cluster.name)
            differing = [vm for vm in settled if _differs(vm, known) and vm.state_at + self._lag < uow.clock.now()]
        for vm in differing:
            await self._follow(vm, known)

    async def _follow(self, stale: Vm, known: Inventory) -> None:
        """Change one record, unless it was changed in the meantime."""
        async with self._uow() as uow:
            machines = VmRepository(uow.session)
            vm = await machines.get(stale.id, for_update=True)
            if vm is None or vm.version != stale.version or await machines.unfinished(vm.id) is not None:
                return
            machine = known.machines[vm.vmid or 0]
            state = seen_as(machine.status, machine.lock)
            if machine.node != vm.node:
                vm.node = machine.node
                touch(uow, vm)
            if state is not None:
                enter(uow, vm, state)
            await uow.commit()


def _differs(vm: Vm, known: Inventory) -> bool:
    """Whether the cluster shows something else. That it does not show a machine means nothing here."""
    machine = known.machines.get(vm.vmid or 0)
    if machine is None:
        return False
    state = seen_as(machine.status, machine.lock) if known.online(machine.node) else None
    return machine.node != vm.node or (state is not None and state is not State(vm.state))
