"""VMIDs of Telar's range: leased to one machine each, and held on to while something may still have them."""

from collections.abc import Mapping, Sequence
from uuid import UUID

import structlog

from libs.common.errors import TelarError
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.vms.domain.cluster import Inventory, carries_mark
from services.vms.errors import MachineMissing, VmidsExhausted, WrongPowerState
from services.vms.models import Vm, VmidLease
from services.vms.ports import Cluster
from services.vms.repository import FOREIGN, LEFTOVER, VmidRepository, VmRepository
from services.vms.service.fleet import Fleet

_log = structlog.get_logger()


class Vmids:
    """Leases VMIDs. One whose machine could not be removed stays taken until the sweep has removed it."""

    def __init__(self, uow: UnitOfWorkFactory, fleet: Fleet, *, first: int, last: int, settle_s: float) -> None:
        self._uow = uow
        self._fleet = fleet
        self._first = first
        self._last = last
        self._settle_s = settle_s

    async def lease(self, uow: UnitOfWork, *vms: Vm) -> None:
        """Give machines of one cluster their VMIDs in the caller's transaction; raises VmidsExhausted."""
        leased = await self._lease(uow, vms[0].cluster, [vm.id for vm in vms])
        for vm in vms:
            vm.vmid = leased[vm.id]

    async def lease_for(self, uow: UnitOfWork, cluster: str, holder: UUID) -> int:
        """Lease a VMID of a cluster to whoever has that id, in the caller's transaction; raises VmidsExhausted."""
        return (await self._lease(uow, cluster, [holder]))[holder]

    async def _lease(self, uow: UnitOfWork, cluster: str, holders: Sequence[UUID]) -> Mapping[UUID, int]:
        leased = await VmidRepository(uow.session).lease(
            cluster, holders, first=self._first, last=self._last, now=uow.clock.now()
        )
        if len(leased) < len(holders):
            raise VmidsExhausted(f"All from {self._first} to {self._last} are taken", retry_after_s=60)
        return leased

    async def ensure(self, vm_id: UUID) -> int:
        """The VMID of a machine's record; another one is leased if it had to give its own up."""
        async with self._uow() as uow:
            vm = await VmRepository(uow.session).get(vm_id, for_update=True)
            if vm is None:
                raise MachineMissing("The record is gone")
            if vm.vmid is None:
                await self.lease(uow, vm)
                await uow.commit()
        return vm.vmid or 0

    async def give_up(self, vm_id: UUID, *, foreign: bool, node: str | None, reason: str) -> None:
        """Take a machine's VMID from it, because a stranger has it, or because what has it cannot be removed now."""
        async with self._uow() as uow:
            vm = await VmRepository(uow.session).get(vm_id, for_update=True)
            if vm is None or vm.vmid is None:
                return
            state = FOREIGN if foreign else LEFTOVER
            await VmidRepository(uow.session).mark(
                vm.cluster, vm.vmid, state, node=node, reason=reason, now=uow.clock.now()
            )
            _log.warning("vmid_given_up", vm_id=str(vm_id), vmid=vm.vmid, state=state, node=node)
            vm.vmid = None
            await uow.commit()

    # The sweep

    async def sweep(self) -> None:
        """Remove what was left behind, and free VMIDs that nothing has any more; one replica does it at a time."""
        for cluster in self._fleet:
            try:
                await self._sweep(cluster)
            except TelarError as error:
                _log.warning("leftovers_not_swept", cluster=cluster.name, error=error.slug)

    async def _sweep(self, cluster: Cluster) -> None:
        async with self._uow() as uow:
            leases = await VmidRepository(uow.session).not_held(cluster.name)
            now = uow.clock.now()
        if not leases:
            return
        known = await cluster.inventory(max_age_s=0)
        for lease in leases:
            age_s = (now - lease.since).total_seconds()
            try:
                gone = await self._gone(cluster, known, lease)
            except TelarError as error:
                _log.warning("leftover_stays", vmid=lease.vmid, node=lease.node, error=error.slug)
                continue
            if gone and age_s > 2 * self._settle_s:
                await self._free(lease)

    async def _gone(self, cluster: Cluster, known: Inventory, lease: VmidLease) -> bool:
        """Whether nothing has the VMID; a machine with the mark of the lease's own is removed first."""
        machine = known.machines.get(lease.vmid)
        if machine is None:
            # An inventory in which nothing is seen proves nothing, nor does the silence of a node that is away.
            return bool(known.machines) and (lease.node is None or known.online(lease.node))
        config = await cluster.config(machine.node, lease.vmid)
        if not carries_mark(config.notes, str(lease.vm_id)):
            return False
        if config.lock is not None:
            _log.error("leftover_locked", vmid=lease.vmid, node=machine.node, lock=config.lock)
            return False
        if config.protected:  # as its template was
            await cluster.configure(machine.node, lease.vmid, {"protection": 0}, digest=config.digest)
        await _remove(cluster, machine.node, lease.vmid)
        _log.info("leftover_removed", vmid=lease.vmid, node=machine.node)
        return True

    async def _free(self, lease: VmidLease) -> None:
        async with self._uow() as uow:
            await VmidRepository(uow.session).release(lease.cluster, lease.vmid)
            await uow.commit()


async def _remove(cluster: Cluster, node: str, vmid: int) -> None:
    if (await cluster.power(node, vmid)).status != "stopped":
        await cluster.wait(await cluster.act(node, vmid, "stop", {"overrule-shutdown": 1}))
    try:
        await cluster.wait(await cluster.destroy(node, vmid))
    except (MachineMissing, WrongPowerState):
        _log.info("leftover_changed_meanwhile", vmid=vmid, node=node)
