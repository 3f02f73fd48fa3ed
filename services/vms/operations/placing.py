"""Decides where machines go: those that wait at the same time are placed one after the other in one transaction."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from libs.common.uow import UnitOfWorkFactory
from services.vms.domain.cluster import Inventory, Template
from services.vms.domain.placement import Demand, Verdict
from services.vms.errors import ProxmoxUnavailable, VmNotFound
from services.vms.models import Vm
from services.vms.ports import Cluster
from services.vms.repository import VmRepository
from services.vms.service import Catalog
from services.vms.service.capacity import Tally, candidates, tally

_AGE_S = 5.0


@dataclass(eq=False, slots=True)
class Case:
    """A machine that has to go somewhere, and where it must not go."""

    vm: Vm
    demand: Demand
    copies: Sequence[Template]
    avoided: Mapping[str, str]
    avoided_sources: frozenset[str]
    verdicts: Sequence[Verdict] | None = None
    failure: Exception | None = None

    @property
    def decided(self) -> bool:
        return self.verdicts is not None or self.failure is not None


class Placer:
    """One placement at a time decides on a cluster, among all replicas; a process takes all its cases to it at once.

    A case that waited in a transaction of its own would keep a connection from those who have work to do.
    """

    def __init__(self, uow: UnitOfWorkFactory, catalog: Catalog) -> None:
        self._uow = uow
        self._catalog = catalog
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: dict[str, list[Case]] = defaultdict(list)

    async def place(self, cluster: Cluster, case: Case) -> Sequence[Verdict]:
        """Every node's verdict, the best first; if it fits, the record says from now on that the machine goes there.

        Raises ProxmoxUnavailable, VmNotFound or DatabaseUnavailable.
        """
        waiting = self._waiting[cluster.name]
        waiting.append(case)
        try:
            async with self._turns[cluster.name]:
                if not case.decided:
                    await self._decide_all(cluster, tuple(waiting))
        finally:
            waiting.remove(case)
        if case.failure is not None:
            raise case.failure
        return case.verdicts or ()

    async def _decide_all(self, cluster: Cluster, cases: Sequence[Case]) -> None:
        """Answer the cases, if only with a failure; those of one that is cancelled are left to the next."""
        try:
            await self._decide(cluster, cases)
        except Exception as error:  # noqa: BLE001 - it is the failure of everyone who waits
            for case in cases:
                case.failure = error

    async def _decide(self, cluster: Cluster, cases: Sequence[Case]) -> None:
        known = await cluster.inventory(max_age_s=_AGE_S)
        if not known.nodes:
            raise ProxmoxUnavailable("The cluster shows no nodes at all; that proves nothing", retry_after_s=5)
        async with self._uow() as uow:
            records = VmRepository(uow.session)
            await records.lock_placement(cluster.name)
            told = await tally(uow.session, cluster.name, without=[case.vm.id for case in cases])
            judged = [(case, self._judge(cluster, known, told, case)) for case in cases]
            chosen = {case.vm.id: verdicts[0].node for case, verdicts in judged if verdicts and verdicts[0].fits}
            gone = set(chosen) - await records.assign(chosen)
            await uow.commit()
        for case, verdicts in judged:
            case.verdicts = verdicts
            if case.vm.id in gone:
                case.failure = VmNotFound("The machine's record is gone")

    def _judge(self, cluster: Cluster, known: Inventory, told: Tally, case: Case) -> Sequence[Verdict]:
        found = candidates(
            cluster, known, told, copies=case.copies, avoided=case.avoided, avoided_sources=case.avoided_sources
        )
        verdicts = self._catalog.rank(case.demand, found)
        if verdicts and verdicts[0].fits:
            told.promise(verdicts[0].node, case.demand)
        return verdicts
