"""Stacks and their host ports in PostgreSQL."""

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.pagination import PageRequest, keyset
from services.containers.domain.stacks import State
from services.containers.errors import HostPortTaken, NoPortLeft, StackNameTaken
from services.containers.models import SORTABLE, HostPort, Stack, StackRevision

DEFAULT_SORT = "-created_at"
_PORTS_LOCK = 0x7E1A_0C0A
_UNSHOWN = ("compose", "reserved")


def sort_value(stack: Any, sort: str | None) -> Sequence[Any]:
    """A stack's place in a list of that order, for the cursor."""
    return getattr(stack, (sort or DEFAULT_SORT).lstrip("-")), stack.id


class StackRepository:
    """The stack records, in the caller's transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, stack_id: UUID, *, for_update: bool = False) -> Stack | None:
        return await self._session.get(Stack, stack_id, with_for_update=for_update or None)

    async def id_of(self, number: int) -> UUID | None:
        found: UUID | None = await self._session.scalar(select(col(Stack.id)).where(col(Stack.number) == number))
        return found

    async def of_project(self, project: str) -> Stack | None:
        """The stack of a compose project, locked."""
        query = select(Stack).where(col(Stack.project) == project).with_for_update()
        return (await self._session.execute(query)).scalar_one_or_none()

    async def settled(self, projects: Collection[str] | None = None) -> dict[str, int]:
        """The versions of all stacks that run or are stopped, or of some, by their projects."""
        settled = (State.RUNNING.value, State.STOPPED.value)
        query = select(col(Stack.project), col(Stack.version)).where(col(Stack.state).in_(settled))
        if projects is not None:
            query = query.where(col(Stack.project).in_(projects))
        return {row.project: row.version for row in await self._session.execute(query)}

    async def add(self, stack: Stack) -> None:
        """Insert it, so that its number is known; raises StackNameTaken."""
        self._session.add(stack)
        try:
            await self._session.flush()
        except IntegrityError as error:
            raise StackNameTaken(f"Choose another name, or delete the stack {stack.name!r}") from error

    async def remove(self, stack: Stack) -> None:
        await self._session.delete(stack)
        await self._session.flush()

    async def list(self, request: PageRequest, *, owner_id: str | None, state: State | None) -> Sequence[Any]:
        """One page, and one stack more if there are any; without an owner everyone's.

        Rows with a record's columns but those that no list shows.
        """
        table = Stack.__table__  # type: ignore[attr-defined] # SQLModel does not declare it
        query = select(*(column for column in table.c if column.name not in _UNSHOWN))
        if owner_id is not None:
            query = query.where(table.c.owner_id == owner_id)
        if state is not None:
            query = query.where(table.c.state == state.value)
        columns = {name: table.c[name] for name in SORTABLE}
        query = keyset(query, request, columns=columns, key=table.c.id, default=DEFAULT_SORT)
        return (await self._session.execute(query)).all()

    async def with_files(self, stack_ids: Collection[UUID]) -> set[UUID]:
        """Which of these stacks exist and need their folders."""
        kept = select(col(Stack.id)).where(col(Stack.id).in_(stack_ids), col(Stack.state) != State.FAILED.value)
        return set((await self._session.execute(kept)).scalars())

    async def any(self) -> bool:
        return await self._session.scalar(select(col(Stack.id)).limit(1)) is not None


class RevisionRepository:
    """Revisions of stacks, in the caller's transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, stack_id: UUID, number: int, *, for_update: bool = False) -> StackRevision | None:
        return await self._session.get(StackRevision, (stack_id, number), with_for_update=for_update or None)

    async def add(self, revision: StackRevision) -> None:
        self._session.add(revision)
        await self._session.flush()

    async def of(self, stack_id: UUID) -> Sequence[StackRevision]:
        """All of a stack's, newest first."""
        query = select(StackRevision).where(col(StackRevision.stack_id) == stack_id)
        return (await self._session.execute(query.order_by(col(StackRevision.number).desc()))).scalars().all()

    async def remove(self, stack_id: UUID, numbers: Collection[int]) -> None:
        query = delete(StackRevision).where(
            col(StackRevision.stack_id) == stack_id, col(StackRevision.number).in_(numbers)
        )
        await self._session.execute(query)


class PortRepository:
    """Host ports, each given to one stack at a time, in the caller's transaction.

    From its first change on a transaction keeps all others from changing ports until it ends: each may change several,
    in any order. Where it changes its owner's quota, too, it does so first.
    """

    def __init__(self, session: AsyncSession, first: int, last: int) -> None:
        self._session = session
        self._first = first
        self._last = last

    async def reserve(self, stack_id: UUID, count: int, *, avoid: Collection[int] = ()) -> list[int]:
        """Take free ports, chosen at random; raises NoPortLeft."""
        await self._lock()
        candidate = func.generate_series(self._first, self._last).column_valued("candidate")
        free = (
            select(candidate)
            .where(~select(HostPort).where(col(HostPort.port) == candidate).exists(), candidate.not_in(avoid))
            .order_by(func.random())
            .limit(count)
        )
        ports = list((await self._session.execute(free)).scalars())
        if len(ports) < count:
            raise NoPortLeft(
                f"All ports from {self._first} to {self._last} are given away; delete a stack or tell an operator",
                retry_after_s=60,
            )
        await self._session.execute(insert(HostPort).values([{"port": one, "stack_id": stack_id} for one in ports]))
        return ports

    async def take(self, stack_id: UUID, ports: Collection[int]) -> None:
        """Take these very ports; raises HostPortTaken if one of them belongs to another stack."""
        if not ports:
            return
        await self._lock()
        adding = insert(HostPort).values([{"port": port, "stack_id": stack_id} for port in set(ports)])
        await self._session.execute(adding.on_conflict_do_nothing())
        held = select(col(HostPort.port)).where(col(HostPort.stack_id) == stack_id, col(HostPort.port).in_(ports))
        missing = set(ports) - set((await self._session.execute(held)).scalars())
        if missing:
            raise HostPortTaken(f"Port {min(missing)} belongs to another stack; leave it out to be given one")

    async def release_but(self, stack_id: UUID, kept: Collection[int]) -> None:
        """Give back all of a stack's ports but those."""
        await self._lock()
        query = delete(HostPort).where(col(HostPort.stack_id) == stack_id, col(HostPort.port).not_in(kept))
        await self._session.execute(query)

    async def _lock(self) -> None:
        await self._session.execute(select(func.pg_advisory_xact_lock(_PORTS_LOCK)))
