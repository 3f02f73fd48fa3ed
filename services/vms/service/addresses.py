"""Keeps the addresses of machines that run: a few are asked at a time, those longest not asked first."""

from datetime import timedelta

import structlog
from sqlalchemy import or_, select, update
from sqlmodel import col

from libs.common.errors import TelarError
from libs.common.uow import UnitOfWorkFactory
from services.vms.domain.cluster import Inventory
from services.vms.domain.states import State
from services.vms.errors import MachineNotOurs
from services.vms.models import Vm
from services.vms.ports import Cluster
from services.vms.service.fleet import Fleet
from services.vms.service.locating import locate

_LATELY_S = 60.0
_log = structlog.get_logger()


class AddressBook:
    """One replica asks, at most `at_once` guests of each cluster per round, however many machines there are.

    A guest that told no address yet is asked again after `wanting_s`, another after `known_s`.
    """

    def __init__(
        self, uow: UnitOfWorkFactory, fleet: Fleet, *, tag: str, at_once: int, wanting_s: float, known_s: float
    ) -> None:
        self._uow = uow
        self._fleet = fleet
        self._tag = tag
        self._at_once = at_once
        self._wanting = timedelta(seconds=wanting_s)
        self._known = timedelta(seconds=known_s)

    async def run(self) -> None:
        for cluster in self._fleet:
            try:
                known = await cluster.inventory(max_age_s=_LATELY_S)
                for vm in await self._due(cluster.name):
                    await self._note(vm, await self._told(cluster, known, vm))
            except TelarError as error:
                _log.warning("addresses_not_asked", cluster=cluster.name, error=error.slug)

    async def _told(self, cluster: Cluster, known: Inventory, vm: Vm) -> list[str]:
        """What the guest says now; what it said last if it says nothing, and nothing for a stranger of that VMID."""
        machine = known.machines.get(vm.vmid or 0)
        if machine is None or vm.vmid is None:
            return list(vm.addresses)
        if self._tag not in machine.tags:
            return []
        try:
            found = await locate(self._fleet, vm, near=machine.node)
            return list(await cluster.addresses(found.node, found.vmid))
        except MachineNotOurs:
            return []
        except TelarError as error:
            _log.debug("addresses_not_told", vm_id=str(vm.id), error=error.slug)
            return list(vm.addresses)

    async def _due(self, cluster: str) -> list[Vm]:
        asked_at, addresses = col(Vm.addresses_at), col(Vm.addresses)
        async with self._uow() as uow:
            now = uow.clock.now()
            query = (
                select(Vm)
                .where(col(Vm.cluster) == cluster, col(Vm.state) == State.RUNNING.value)
                .where(
                    or_(
                        asked_at.is_(None),
                        asked_at < now - self._known,
                        (addresses == []) & (asked_at < now - self._wanting),
                    )
                )
                .order_by(asked_at.asc().nulls_first())
                .limit(self._at_once)
            )
            return list((await uow.session.execute(query)).scalars())

    async def _note(self, vm: Vm, found: list[str]) -> None:
        """What is observed is no change of the record: its version stays."""
        async with self._uow() as uow:
            noting = update(Vm).where(col(Vm.id) == vm.id).values(addresses=found, addresses_at=uow.clock.now())
            await uow.session.execute(noting)
            await uow.commit()
