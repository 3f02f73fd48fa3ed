"""The inbox: a handled event leaves a row in its handler's transaction, so that a second delivery changes nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from itertools import chain
from uuid import UUID

import structlog
from sqlalchemy import (
    ARRAY,
    Column,
    DateTime,
    Integer,
    LargeBinary,
    RowMapping,
    Table,
    Text,
    Uuid,
    bindparam,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert

from libs.common.batches import Batches
from libs.common.bus.protocol import Bus, DeadLetter, Delivery, TransientFailure
from libs.common.db import COMMON_METADATA, DatabaseUnavailable, as_database_error
from libs.common.errors import NotFound, TelarError, Unavailable
from libs.common.events import Event
from libs.common.ids import uuid7
from libs.common.uow import UnitOfWork, UnitOfWorkFactory

EventHandler = Callable[[UnitOfWork, Event], Awaitable[None]]
"""Handles one event inside the unit of work that also holds its inbox row; must not commit."""


@dataclass(frozen=True, slots=True)
class NewestOnly:
    """A handler of events that tell all of their subject: of several at hand, only the one of the highest sequence."""

    handler: EventHandler

    async def __call__(self, uow: UnitOfWork, event: Event) -> None:
        await self.handler(uow, event)


inbox_table = Table(
    "inbox",
    COMMON_METADATA,
    Column("event_id", Text, primary_key=True),
    Column("handled_at", DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
)

dead_letters_table = Table(
    "dead_letters",
    COMMON_METADATA,
    Column("id", Uuid, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("deliveries", Integer, nullable=False),
    Column("failed_at", DateTime(timezone=True), nullable=False),
)

_REMEMBER = (
    insert(inbox_table)
    .from_select(["event_id"], select(func.unnest(bindparam("ids", type_=ARRAY(Text)))))
    .on_conflict_do_nothing()
    .returning(inbox_table.c.event_id)
)

_log = structlog.get_logger()


class DeadLetterNotFound(NotFound):
    slug = "dead-letter-not-found"
    title = "No such dead letter"


async def _given(handler: EventHandler, uow: UnitOfWork, event: Event) -> None:
    await handler(uow, event)


class Inbox:
    """Consumes one service's queue: `handlers` maps an event type to its handler."""

    def __init__(self, service: str, bus: Bus, uow: UnitOfWorkFactory, handlers: Mapping[str, EventHandler]) -> None:
        self._service = service
        self._bus = bus
        self._uow = uow
        self._handlers = handlers
        self._batches = Batches(self._handle_runs)
        self._closed = False

    async def start(self) -> None:
        if self._handlers:
            await self._bus.subscribe(
                self._service, tuple(self._handlers), self.handle, self.keep_dead, together=self.handle_together
            )

    async def close(self) -> None:
        """Let what is being handled end; what still comes is left to another process, or to the next start."""
        self._closed = True
        await self._batches.close()

    async def handle(self, event: Event) -> None:
        """Handle an event unless it was handled before; a database that is away is a TransientFailure.

        Events that come while others are being handled share a transaction; what one of them breaks is done again for
        each alone, so that a failure is only ever its own event's.
        """
        await self.handle_together([Delivery(event, copy_context())])

    async def handle_together(self, run: Sequence[Delivery]) -> None:
        """Handle some events of one subject, all or none, as `handle` does one."""
        if self._closed:
            raise TransientFailure("the service stops")
        known = [delivery for delivery in run if self._is_known(delivery.event)]
        if known:
            await self._batches.do(known)

    def _is_known(self, event: Event) -> bool:
        known = event.type in self._handlers
        if not known:  # an old binding may linger on the broker after an upgrade
            _log.warning("event_without_handler", type=event.type, id=event.id)
        return known

    async def _handle_runs(self, runs: Sequence[Sequence[Delivery]]) -> Sequence[Exception | None]:
        try:
            # Owners in one order, too: what several subjects of an owner share is locked in it by every batch.
            in_order = sorted(runs, key=lambda run: run[0].event.owner or "")
            await self._commit(list(chain.from_iterable(in_order)))
        except Exception as error:  # noqa: BLE001 - what a handler raises is told to its caller
            if as_database_error(error) is not None or isinstance(error, DatabaseUnavailable):
                return [TransientFailure(type(error).__name__) for _ in runs]
            if len(runs) == 1:
                return [TransientFailure(error.slug) if isinstance(error, Unavailable) else error]
        else:
            return [None] * len(runs)
        return [(await self._handle_runs([run]))[0] for run in runs]

    async def _commit(self, deliveries: Sequence[Delivery]) -> None:
        """Handle in one transaction whatever was not handled before, each event in the context of its delivery."""
        ids = sorted({delivery.event.id for delivery in deliveries})  # in one order: two batches never lock each other
        async with self._uow() as uow:
            fresh = set((await uow.session.execute(_REMEMBER, {"ids": ids})).scalars())
            newest = self._newest(deliveries)
            for delivery in deliveries:
                event = delivery.event
                if event.sequence < newest.get(event.subject, 0) and self._tells_all(event):
                    continue
                if event.id not in fresh:
                    _log.info("event_seen_before", type=event.type, id=event.id)
                    continue
                fresh.discard(event.id)
                await asyncio.create_task(_given(self._handlers[event.type], uow, event), context=delivery.context)
            await uow.commit()

    def _newest(self, deliveries: Sequence[Delivery]) -> Mapping[str, int]:
        """The highest sequence of each subject that is told of as a whole."""
        newest: dict[str, int] = {}
        for delivery in deliveries:
            event = delivery.event
            if self._tells_all(event):
                newest[event.subject] = max(event.sequence, newest.get(event.subject, 0))
        return newest

    def _tells_all(self, event: Event) -> bool:
        return isinstance(self._handlers[event.type], NewestOnly)

    async def keep_dead(self, letter: DeadLetter) -> None:
        """Store a message that could not be handled, for an admin to see and replay."""
        async with self._uow() as uow:
            await uow.session.execute(
                insert(dead_letters_table).values(
                    id=uuid7(),
                    queue=letter.queue,
                    body=letter.body,
                    reason=letter.reason[:2000],
                    deliveries=letter.deliveries,
                    failed_at=letter.failed_at,
                )
            )
            await uow.commit()
        _log.error("event_dead", queue=letter.queue, reason=letter.reason[:200], deliveries=letter.deliveries)

    async def dead_letters(self, *, before: UUID | None, limit: int) -> Sequence[RowMapping]:
        """List kept dead letters, newest first, older than the given id."""
        query = select(dead_letters_table).order_by(dead_letters_table.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(dead_letters_table.c.id < before)
        async with self._uow() as uow:
            return (await uow.session.execute(query)).mappings().all()

    async def replay(self, letter_id: UUID) -> None:
        """Put a dead letter back into the service's queue and forget it; raises DeadLetterNotFound."""
        async with self._uow() as uow:
            body = await self._take(uow, letter_id)
            try:
                await self._bus.redeliver(self._service, body)
            except TelarError as error:
                raise Unavailable(f"The bus did not take the message: {error.detail}", retry_after_s=5) from error
            await uow.commit()

    async def discard(self, letter_id: UUID) -> None:
        """Forget a dead letter for good; raises DeadLetterNotFound."""
        async with self._uow() as uow:
            await self._take(uow, letter_id)
            await uow.commit()

    async def sweep(self) -> None:
        """Forget inbox rows older than 30 days: no broker redelivers that late."""
        async with self._uow() as uow:
            await uow.session.execute(inbox_table.delete().where(text("handled_at < now() - interval '30 days'")))
            await uow.commit()

    async def _take(self, uow: UnitOfWork, letter_id: UUID) -> bytes:
        row = await uow.session.execute(
            dead_letters_table.delete().where(dead_letters_table.c.id == letter_id).returning(dead_letters_table.c.body)
        )
        body: bytes | None = row.scalar_one_or_none()
        if body is None:
            raise DeadLetterNotFound(f"There is no dead letter {letter_id} in {self._service}")
        return body
