"""Templates, nodes, and where a machine would be placed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from libs.common.batches import SharedLook
from libs.common.uow import UnitOfWorkFactory
from services.vms.domain.cluster import Inventory, Template, choose_templates
from services.vms.domain.placement import Candidate, Demand, Policy, Verdict, explain, rank
from services.vms.domain.templates import TemplateStatus
from services.vms.errors import DiskTooSmall, NoNodeFits, ProxmoxFailure, ProxmoxUnavailable, TemplateNotFound
from services.vms.models import TemplateRecord, Vm
from services.vms.ports import Cluster
from services.vms.repository import TemplateRepository
from services.vms.schemas import Wish
from services.vms.service.capacity import Tally, candidates, tally
from services.vms.service.fleet import Fleet

_TEMPLATE_AGE_S = 15.0
_ANEW_S = 0.0
_GLANCE_S = 5.0
"""How old the list may be by which a request is judged; the operation looks again."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A template on one cluster: its copies there, and its record if Telar made or registered it."""

    cluster: Cluster
    copies: Sequence[Template]
    record: TemplateRecord | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """What was said of every node of the offer's cluster, the best first; nothing if the cluster does not answer."""

    offer: Offer
    demand: Demand
    verdicts: Sequence[Verdict] = ()

    @property
    def score(self) -> float | None:
        """How well the best node fits; None if none does."""
        return self.verdicts[0].score if self.verdicts and self.verdicts[0].fits else None


class Catalog:
    """What the clusters offer."""

    def __init__(self, uow: UnitOfWorkFactory, fleet: Fleet, policy: Policy) -> None:
        self._uow = uow
        self._fleet = fleet
        self._policy = policy
        self._records = SharedLook(self._all_records)
        self._tallies = {cluster.name: SharedLook(partial(self._tally, cluster.name)) for cluster in fleet}

    # Templates

    async def templates(self, *, max_age_s: float = _TEMPLATE_AGE_S) -> list[tuple[str, Template]]:
        """Every template with its cluster's name; raises what a cluster says if none tells of any."""
        self._fleet.require_any()
        found: list[tuple[str, Template]] = []
        away: ProxmoxFailure | None = None
        for cluster in self._fleet:
            try:
                found += [(cluster.name, template) for template in await _templates(cluster, max_age_s)]
            except ProxmoxFailure as error:
                away = error
        if away is not None and not found:
            raise away
        return found

    async def records(self) -> Sequence[TemplateRecord]:
        """Every template's record; not to be changed, since others may look at the same ones."""
        return await self._records.now()

    async def _all_records(self) -> Sequence[TemplateRecord]:
        async with self._uow.looking() as session:
            return await TemplateRepository(session).all()

    async def offers(self, wish: Wish) -> list[Offer]:
        """What a wish names, on every cluster that has it; raises TemplateNotFound, telling what there is."""
        records = await self.records()
        offered: set[str] = set()
        for max_age_s in (_TEMPLATE_AGE_S, _ANEW_S):  # a template may be newer than what was seen last
            by_cluster: dict[str, list[Template]] = {}
            for name, one in await self.templates(max_age_s=max_age_s):
                if wish.cluster in (None, name):
                    by_cluster.setdefault(name, []).append(one)
            found = []
            for name, known in by_cluster.items():
                shown = as_recorded(name, known, records, private=wish.image_id is not None)
                offered |= {one.os_type for one, _ in shown}
                offer = _offer(self._fleet.get(name), shown, wish)
                if offer is not None:
                    found.append(offer)
            if found:
                return found
        told = ", ".join(sorted(offered)) or "none"
        asked = wish.template or wish.os_type or f"the image {wish.image_id}"
        raise TemplateNotFound(f"There is no template for {asked!r}; there are: {told}")

    async def copies_of(self, vm: Vm, cluster: Cluster, *, max_age_s: float = _ANEW_S) -> list[Template]:
        """The copies of a machine's template as they are now, or were lately."""
        known = await cluster.templates(max_age_s=max_age_s)
        if vm.template_id is None:
            return choose_templates(known, template=vm.template, os_type=None)
        async with self._uow.looking() as session:
            record = await TemplateRepository(session).get(vm.template_id)
        vmids = set() if record is None else {copy["vmid"] for copy in record.copies}
        return [one for one in known if one.vmid in vmids]

    # Nodes and placement

    async def nodes(self) -> list[tuple[str, Candidate]]:
        """Every node of every cluster that answers, with what is promised on it; raises what it says if none does."""
        seen: list[tuple[Cluster, Inventory]] = []
        away: ProxmoxFailure | None = None
        for cluster in self._fleet:
            try:
                seen.append((cluster, await cluster.inventory(max_age_s=_ANEW_S)))
            except ProxmoxFailure as error:
                away = error
        if away is not None and not seen:
            raise away
        found: list[tuple[str, Candidate]] = []
        async with self._uow.looking() as session:
            for cluster, known in seen:
                told = await tally(session, cluster.name)
                found += [(cluster.name, one) for one in candidates(cluster, known, told, copies=())]
        return found

    async def place(self, wish: Wish, *, ha: bool = False, max_age_s: float = _ANEW_S) -> list[Placement]:
        """Judge every cluster that has what is wished for, the best first; raises TemplateNotFound or DiskTooSmall.

        A cluster that does not answer comes after those where the machine fits, and before those where it does not.
        """
        judged: list[Placement] = []
        refused: DiskTooSmall | None = None
        for offer in await self.offers(wish):
            try:
                demand = demand_of(wish, offer.copies[0], ha=ha)
            except DiskTooSmall as error:
                refused = error
                continue
            judged.append(await self._judge(offer, demand, max_age_s))
        if not judged and refused is not None:
            raise refused
        return sorted(judged, key=lambda one: (one.score is None, bool(one.verdicts), -(one.score or 0.0)))

    async def choose(self, wish: Wish, *, ha: bool = False) -> Placement:
        """The cluster for a machine; raises NoNodeFits with every node's reason, or what `place` raises."""
        judged = await self.place(wish, ha=ha, max_age_s=_GLANCE_S)
        if judged[0].score is None and judged[0].verdicts:
            nodes = [
                {"cluster": one.offer.cluster.name, "node": verdict.node, "reasons": list(verdict.reasons)}
                for one in judged
                for verdict in one.verdicts
            ]
            raise NoNodeFits("; ".join(explain(one.verdicts) for one in judged), extensions={"nodes": nodes})
        return judged[0]

    async def _judge(self, offer: Offer, demand: Demand, max_age_s: float) -> Placement:
        try:
            known = await offer.cluster.inventory(max_age_s=max_age_s)
        except ProxmoxFailure:
            return Placement(offer, demand)
        told = await self._tallies[offer.cluster.name].now()
        found = candidates(offer.cluster, known, told, copies=offer.copies)
        return Placement(offer, demand, self.rank(demand, found))

    async def _tally(self, cluster: str) -> Tally:
        async with self._uow.looking() as session:
            return await tally(session, cluster)

    def rank(self, demand: Demand, candidates: Sequence[Candidate]) -> list[Verdict]:
        return rank(demand, candidates, self._policy)


def demand_of(wish: Wish, template: Template, *, ha: bool = False) -> Demand:
    """What is wished for, filled up from the template; raises DiskTooSmall."""
    if wish.disk_gib is not None and wish.disk_gib < template.disk_gib:
        raise DiskTooSmall(f"{template.name} needs {template.disk_gib} GiB, {wish.disk_gib} GiB were asked for")
    return Demand(
        cores=wish.cores or template.cores,
        memory_mib=wish.memory_mib or template.memory_mib,
        disk_gib=wish.disk_gib or template.disk_gib,
        node=wish.node,
        ha=ha,
    )


def as_recorded(
    cluster: str,
    known: Sequence[Template],
    records: Sequence[TemplateRecord],
    *,
    hidden: bool = False,
    private: bool = False,
) -> list[tuple[Template, TemplateRecord | None]]:
    """A cluster's templates with their records, by whose name and system they are offered.

    Those that are not ready, or not offered for now, are left out unless `hidden` ones are wanted, too; those of
    private images unless `private` ones are.
    """
    owners = {copy["vmid"]: record for record in records if record.cluster == cluster for copy in record.copies}
    shown: list[tuple[Template, TemplateRecord | None]] = []
    for one in known:
        record = owners.get(one.vmid)
        if record is None:
            shown.append((one, None))
        elif hidden or (record.offered and record.state == TemplateStatus.READY and (private or not record.private)):
            shown.append((replace(one, name=record.name, os_type=record.os_type), record))
    return shown


def _offer(cluster: Cluster, shown: Sequence[tuple[Template, TemplateRecord | None]], wish: Wish) -> Offer | None:
    """What a wish names on one cluster: by image, by a template's id, or by its name or system."""
    by_vmid = {one.vmid: record for one, record in shown}
    if wish.image_id is not None:
        copies = [one for one, record in shown if record is not None and record.image_id == wish.image_id]
    else:
        copies = [one for one, record in shown if record is not None and str(record.id) == wish.template]
        copies = copies or choose_templates([one for one, _ in shown], template=wish.template, os_type=wish.os_type)
    if not copies:
        return None
    record = by_vmid[copies[0].vmid]
    # Copies of one template are equal; others of the same operating system are not copies of it.
    return Offer(cluster, [one for one in copies if by_vmid[one.vmid] is record and one.name == copies[0].name], record)


async def _templates(cluster: Cluster, max_age_s: float) -> Sequence[Template]:
    """A cluster's templates, as they were last seen if it does not answer now."""
    try:
        return await cluster.templates(max_age_s=max_age_s)
    except ProxmoxUnavailable:
        return await cluster.templates(max_age_s=math.inf)
