"""What a machine used over time, for those who may see it."""

from libs.common.auth import Principal
from libs.common.uow import UnitOfWorkFactory
from services.vms.domain.history import History, Timeframe
from services.vms.domain.states import State
from services.vms.errors import VmState
from services.vms.service.access import Reference, visible
from services.vms.service.fleet import Fleet
from services.vms.service.locating import locate


class Histories:
    """One use case; the cluster keeps the figures."""

    def __init__(self, uow: UnitOfWorkFactory, fleet: Fleet) -> None:
        self._uow = uow
        self._fleet = fleet

    async def of(self, principal: Principal, reference: Reference, timeframe: Timeframe) -> History:
        """Raises VmNotFound, VmState for a machine that was not made, or what the cluster says."""
        async with self._uow() as uow:
            vm = await visible(uow, principal, reference)
        if vm.vmid is None or State(vm.state) is State.CREATING:
            raise VmState(f"It is {vm.state}; there is no machine to measure")
        found = await locate(self._fleet, vm)
        return await found.cluster.histories.of(found.node, found.vmid, timeframe)
