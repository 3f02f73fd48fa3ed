"""Finds what differs between the clusters and the records, and reports what stays different for a while.

Nothing is changed by finding it: no record is marked, no machine is touched.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.errors import TelarError
from libs.common.ids import uuid7
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.vms.domain.drift import Finding, Recorded, compare, is_doubtful
from services.vms.events import DriftFound
from services.vms.models import Drift, Vm, VmidLease
from services.vms.ports import Cluster
from services.vms.repository import FOREIGN, VmRepository
from services.vms.service.fleet import Fleet

_log = structlog.get_logger()


class DriftWatch:
    """Compares each cluster's one list with the records; one replica does it at a time."""

    def __init__(
        self, uow: UnitOfWorkFactory, fleet: Fleet, *, tag: str, lag_s: float, settle_s: float, doubt_s: float
    ) -> None:
        self._uow = uow
        self._fleet = fleet
        self._tag = tag
        self._lag = timedelta(seconds=lag_s)
        self._settle = timedelta(seconds=settle_s)
        self._doubt = timedelta(seconds=doubt_s)
        self._doubted_since: dict[str, datetime] = {}

    async def run(self) -> None:
        for cluster in self._fleet:
            try:
                await self._look(cluster)
            except TelarError as error:
                _log.warning("drift_not_looked_for", cluster=cluster.name, error=error.slug)

    async def _look(self, cluster: Cluster) -> None:
        known = await cluster.inventory(max_age_s=0)
        async with self._uow() as uow:
            now = uow.clock.now()
            settled = await VmRepository(uow.session).settled(cluster.name)
            records = [recorded(vm) for vm in settled if vm.vmid is not None and vm.state_at + self._lag < now]
            if is_doubtful(records, known) and not (known.machines and self._believed(cluster.name, now)):
                _log.warning("inventory_doubted", cluster=cluster.name, machines=len(known.machines))
                return
            if not is_doubtful(records, known):
                self._doubted_since.pop(cluster.name, None)
            leased = await _leased(uow.session, cluster.name)
            found = compare(records, known, leased=leased, tag=self._tag)
            await self._note(uow, cluster.name, found, now)
            await uow.commit()

    def _believed(self, cluster: str, now: datetime) -> bool:
        """Whether a shrunken list has stayed so for so long that it may be reported on."""
        return now - self._doubted_since.setdefault(cluster, now) > self._doubt

    async def _note(self, uow: UnitOfWork, cluster: str, found: Sequence[Finding], now: datetime) -> None:
        query = select(Drift).where(col(Drift.cluster) == cluster).with_for_update()
        before = {row.vmid: row for row in (await uow.session.execute(query)).scalars()}
        current = {finding.vmid: finding for finding in found}
        for vmid, row in before.items():
            if vmid not in current or current[vmid].kind.value != row.kind:
                await uow.session.delete(row)
        await uow.session.flush()
        for vmid, finding in current.items():
            known = before.get(vmid)
            if known is None or known.kind != finding.kind.value:
                known = Drift(
                    id=uuid7(), cluster=cluster, vmid=vmid, kind=finding.kind.value, differences=[], first_seen_at=now
                )
                uow.session.add(known)
            known.vm_id, known.node, known.name = finding.vm_id, finding.node, finding.name
            known.differences = [
                {"what": one.what, "record": one.record, "cluster": one.cluster} for one in finding.differences
            ]
            if known.reported_at is None and now - known.first_seen_at >= self._settle:
                known.reported_at = now
                told = {"cluster": cluster, "vmid": vmid, "kind": finding.kind.value, "node": finding.node}
                _log.warning("drift_found", **told)
                uow.add_event(DriftFound(**told, vm_id=finding.vm_id), subject=str(known.id))


def recorded(vm: Vm) -> Recorded:
    return Recorded(
        vm_id=vm.id,
        vmid=vm.vmid or 0,
        node=vm.node,
        name=vm.name,
        cores=vm.cores,
        memory_mib=vm.memory_mib,
        disk_gib=vm.disk_gib,
        restart_needed=vm.restart_needed,
    )


async def _leased(session: AsyncSession, cluster: str) -> set[int]:
    """VMIDs that Telar has in use, or still has to clean up."""
    leases = select(col(VmidLease.vmid)).where(col(VmidLease.cluster) == cluster, col(VmidLease.state) != FOREIGN)
    records = select(col(Vm.vmid)).where(col(Vm.cluster) == cluster, col(Vm.vmid).is_not(None))
    found = {*(await session.execute(leases)).scalars(), *(await session.execute(records)).scalars()}
    return {vmid for vmid in found if vmid is not None}
