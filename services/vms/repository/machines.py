"""Virtual machines and their VMIDs in PostgreSQL."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    column,
    delete,
    func,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.operations import State as OperationState
from libs.common.operations import operations_table
from libs.common.pagination import PageRequest
from services.vms.domain.states import State
from services.vms.models import Vm, VmidLease
from services.vms.repository.listing import VmFilter, page_of

HELD, LEFTOVER, FOREIGN = "held", "leftover", "foreign"
_TURNS = 64


@dataclass(frozen=True, slots=True)
class Promised:
    """What Telar's own machines were promised on one node."""

    cores: int = 0
    memory_mib: int = 0
    machines: int = 0


def _promised() -> Select[Any]:
    table = Vm.__table__.c  # type: ignore[attr-defined] # SQLModel does not declare it
    counted = table.id.not_in(bindparam("without", expanding=True))
    return (
        select(
            table.node,
            func.coalesce(func.sum(table.cores).filter(counted), 0).label("cores"),
            func.coalesce(func.sum(table.memory_mib).filter(counted), 0).label("memory_mib"),
            func.count().filter(counted).label("machines"),
            func.array_agg(table.vmid).filter(table.vmid.is_not(None)).label("vmids"),
        )
        .where(table.cluster == bindparam("cluster"))
        .group_by(table.node)
    )


def _assign() -> Any:
    table = Vm.__table__  # type: ignore[attr-defined] # as above
    of_them = table.c.id.in_(bindparam("ids", expanding=True))
    return update(table).where(of_them).values(node=bindparam("to")).returning(table.c.id)


def _lease_next() -> Any:
    """Lease to each holder the VMID whose turn it is, unless it is taken."""
    table = VmidLease.__table__  # type: ignore[attr-defined] # as above
    given = (
        func.unnest(bindparam("holders", type_=ARRAY(table.c.vm_id.type)))
        .table_valued(column("vm_id", table.c.vm_id.type))
        .render_derived()
    )
    turn = cast(bindparam("first") + func.nextval("vmid_turns") % bindparam("size"), Integer)
    of_each = {
        "cluster": bindparam("of_cluster", type_=table.c.cluster.type),
        "vmid": turn,
        "state": literal(HELD),
        "vm_id": given.c.vm_id,
        "reason": literal(""),
        "since": bindparam("now", type_=table.c.since.type),
    }
    leasing = insert(table).from_select(list(of_each), select(*of_each.values()).select_from(given))
    return leasing.on_conflict_do_nothing().returning(table.c.vm_id, table.c.vmid)


_PROMISED, _ASSIGN, _LEASE_NEXT = _promised(), _assign(), _lease_next()


class VmRepository:
    """The machines' records, in the caller's transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, vm_id: UUID, *, for_update: bool = False) -> Vm | None:
        """A machine's record; `for_update` waits for who changes it, and gives what they have left."""
        locking = for_update or None
        return await self._session.get(Vm, vm_id, with_for_update=locking, populate_existing=for_update)

    async def by_integer(self, number: int) -> Sequence[Vm]:
        """The machines that have this VMID, each on a cluster of its own, or this number."""
        query = select(Vm).where(or_(col(Vm.vmid) == number, col(Vm.number) == number))
        return (await self._session.execute(query)).scalars().all()

    async def add(self, *vms: Vm) -> None:
        """Add records; their numbers are known afterwards."""
        self._session.add_all(vms)
        await self._session.flush()

    async def remove(self, vm: Vm) -> None:
        await self._session.delete(vm)
        await self._session.flush()

    async def list(self, wanted: VmFilter, request: PageRequest, *, owner_id: str | None) -> Sequence[Any]:
        """One page, and one machine more if there are any, of one owner's; None lists everyone's."""
        query, values = page_of(wanted, request, owner_id=owner_id)
        return (await self._session.execute(query, values)).all()

    async def settled(self, cluster: str) -> Sequence[Vm]:
        """The machines of a cluster that it may tell something new about, without those being worked on."""
        states = [state.value for state in State if state.settled]
        working = select(operations_table.c.resource_id).where(
            operations_table.c.resource_type == "vm",
            operations_table.c.state.in_((OperationState.PENDING, OperationState.RUNNING)),
        )
        query = select(Vm).where(
            col(Vm.cluster) == cluster,
            col(Vm.state).in_(states),
            cast(col(Vm.id), Text).not_in(working),
        )
        return (await self._session.execute(query)).scalars().all()

    async def lock_placement(self, cluster: str) -> None:
        """Let one placement at a time decide on a cluster, until the end of the transaction."""
        await self._session.execute(
            select(func.pg_advisory_xact_lock(func.hashtextextended("placement " + cluster, 0)))
        )

    async def promised(
        self, cluster: str, *, without: Collection[UUID] = ()
    ) -> tuple[dict[str, Promised], frozenset[int]]:
        """By node, what Telar's machines `without` some were promised; and the VMIDs of all of them."""
        promised: dict[str, Promised] = {}
        own: set[int] = set()
        for row in await self._session.execute(_PROMISED, {"cluster": cluster, "without": list(without)}):
            own.update(row.vmids or ())
            if row.node is not None:
                promised[row.node] = Promised(int(row.cores), int(row.memory_mib), int(row.machines))
        return promised, frozenset(own)

    async def assign(self, nodes: Mapping[UUID, str]) -> set[UUID]:
        """Note on which nodes machines are going to be; gives those of them that have a record."""
        by_node: dict[str, list[UUID]] = {}
        for vm_id, node in nodes.items():
            by_node.setdefault(node, []).append(vm_id)
        noted: set[UUID] = set()
        for node, ids in by_node.items():
            noted.update((await self._session.execute(_ASSIGN, {"to": node, "ids": ids})).scalars())
        return noted

    async def unfinished(self, vm_id: UUID) -> str | None:
        """The id of an operation on the machine that waits or runs."""
        query = select(operations_table.c.id).where(
            operations_table.c.resource_type == "vm",
            operations_table.c.resource_id == str(vm_id),
            operations_table.c.state.in_((OperationState.PENDING, OperationState.RUNNING)),
        )
        found: str | None = await self._session.scalar(query.limit(1))
        return found


class VmidRepository:
    """Which VMIDs are taken, in the caller's transaction; the table's key lets nobody have one twice."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def lease(
        self, cluster: str, holders: Sequence[UUID], *, first: int, last: int, now: datetime
    ) -> dict[UUID, int]:
        """Lease a free VMID of the range to each of the holders; those for whom there is none are left out.

        Turns go round the range, so that an id comes back as late as possible: backups and firewall rules of a machine
        that is gone may linger under it.
        """
        size = last - first + 1
        turn = {"of_cluster": cluster, "now": now, "first": first, "size": size}
        leased: dict[UUID, int] = {}
        for _ in range(min(size, _TURNS)):
            left = [holder for holder in holders if holder not in leased]
            if not left:
                return leased
            rows = await self._session.execute(_LEASE_NEXT, turn | {"holders": left})
            leased |= {row.vm_id: row.vmid for row in rows}
        known = select(col(VmidLease.vmid)).where(col(VmidLease.cluster) == cluster)
        taken = set((await self._session.execute(known)).scalars())
        free = (vmid for vmid in range(first, last + 1) if vmid not in taken)
        for holder in (holder for holder in holders if holder not in leased):
            for vmid in free:
                if await self._take(cluster, holder, vmid, now):
                    leased[holder] = vmid
                    break
        return leased

    async def _take(self, cluster: str, vm_id: UUID, vmid: int, now: datetime) -> bool:
        taking = insert(VmidLease).values(cluster=cluster, vmid=vmid, state=HELD, vm_id=vm_id, reason="", since=now)
        row = await self._session.execute(taking.on_conflict_do_nothing().returning(col(VmidLease.vmid)))
        return row.first() is not None

    async def mark(self, cluster: str, vmid: int, state: str, *, node: str | None, reason: str, now: datetime) -> None:
        await self._session.execute(
            update(VmidLease)
            .where(col(VmidLease.cluster) == cluster, col(VmidLease.vmid) == vmid)
            .values(state=state, node=node, reason=reason[:500], since=now)
        )

    async def release(self, cluster: str, vmid: int) -> None:
        await self._session.execute(
            delete(VmidLease).where(col(VmidLease.cluster) == cluster, col(VmidLease.vmid) == vmid)
        )

    async def release_held(self, cluster: str, vmid: int) -> None:
        """Free a VMID, unless something may still have it."""
        await self._session.execute(
            delete(VmidLease).where(
                col(VmidLease.cluster) == cluster, col(VmidLease.vmid) == vmid, col(VmidLease.state) == HELD
            )
        )

    async def not_held(self, cluster: str) -> Sequence[VmidLease]:
        query = select(VmidLease).where(col(VmidLease.cluster) == cluster, col(VmidLease.state) != text("'held'"))
        return (await self._session.execute(query.order_by(col(VmidLease.vmid)))).scalars().all()
