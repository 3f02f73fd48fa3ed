"""The unit of work: load, decide, save, add events and operations, commit; nothing happens without the commit."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Self

from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common import outbox
from libs.common.clock import Clock, SystemClock
from libs.common.db import Database, as_database_error, database_errors
from libs.common.events import Event, Payload
from libs.common.telemetry import current_traceparent

BeforeCommit = Callable[[AsyncSession], Awaitable[None]]

before_commit: ContextVar[BeforeCommit | None] = ContextVar("before_commit", default=None)
"""Set around a request that leaves a mark in the very transaction that changes something (idempotency keys)."""


class UnitOfWork:
    """One transaction: `async with uow_factory() as uow: …; await uow.commit()`; rolled back without a commit.

    A database that does not answer, or has no connection free, leaves the block as DatabaseUnavailable.
    """

    def __init__(self, database: Database, *, source: str, clock: Clock) -> None:
        self.session: AsyncSession = database.session()
        self.clock = clock
        self.source = source
        self._events: list[Event] = []
        self._marks: list[BeforeCommit] = []

    def add_event(self, payload: Payload, *, subject: str, owner: str | None = None, sequence: int = 0) -> Event:
        """Say what happened; the event leaves when this unit commits.

        `sequence` is the subject's version after the change, so that consumers can drop an older event.
        """
        event = self.event(payload, subject=subject, owner=owner, sequence=sequence)
        self._events.append(event)
        return event

    def event(self, payload: Payload, *, subject: str, owner: str | None = None, sequence: int = 0) -> Event:
        """The event as `add_event` would say it."""
        return Event(
            type=payload.event_type,
            subject=subject,
            source=self.source,
            time=self.clock.now(),
            data=payload.model_dump(mode="json"),
            owner=owner,
            traceparent=current_traceparent(),
            sequence=sequence,
        )

    def answer_also(self, caller: Context) -> None:
        """Leave the mark of another request, too: this unit does what was asked for in that context."""
        mark = caller.get(before_commit)
        if mark is not None:
            self._marks.append(mark)

    async def commit(self) -> None:
        """Make the changes and their events durable together."""
        with database_errors():
            await self.session.flush()
            if self._events:
                await outbox.add(self.session, self._events)
                self._events.clear()
            for mark in (before_commit.get(), *self._marks):
                if mark is not None:
                    await mark(self.session)
            await self.session.commit()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.session.close()
        known = None if exc is None else as_database_error(exc)
        if known is not None:
            raise known from exc


class UnitOfWorkFactory:
    """Makes units of work over one database; `source` (`/telar/vms`) is the CloudEvents source of their events."""

    def __init__(self, database: Database, *, source: str, clock: Clock | None = None) -> None:
        self.database = database
        self.source = source
        self._clock = clock or SystemClock()

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncIterator[AsyncSession]:
        """A session to look with, which must change nothing: a unit of work without a transaction's cost."""
        with database_errors():
            async with self.database.looking() as session:
                yield session

    def __call__(self) -> UnitOfWork:
        return UnitOfWork(self.database, source=self.source, clock=self._clock)
