"""The transactional outbox: events are written with the change they tell of, then relayed to the bus.

The relay holds its rows with `FOR UPDATE SKIP LOCKED`, publishes, waits for the confirm and marks them. One relay at a
time works per database (an advisory lock), so that the events of a subject leave in the order they were written.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Select,
    Table,
    Text,
    bindparam,
    func,
    insert,
    select,
    text,
    update,
)
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.bus.protocol import Bus
from libs.common.db import COMMON_METADATA, Database, Notifications, drain, transaction
from libs.common.errors import TelarError, Unavailable
from libs.common.events import Event
from libs.common.telemetry import Metrics

CHANNEL = "telar_outbox"
RETENTION = "7 days"
_ADVISORY_LOCK = 0x7E1A_0B0C

outbox_table = Table(
    "outbox",
    COMMON_METADATA,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("type", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("published_at", DateTime(timezone=True)),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Index("outbox_unpublished", "id", postgresql_where=text("published_at IS NULL")),
    Index("outbox_published_at", "published_at", postgresql_where=text("published_at IS NOT NULL")),
)

_log = structlog.get_logger()


def _adding() -> Select[Any]:
    """Write one event and wake the relay, in one statement."""
    given = {name: bindparam(f"new_{name}", type_=outbox_table.c[name].type) for name in ("type", "subject", "body")}
    added = insert(outbox_table).values(**given).returning(outbox_table.c.id).cte("added")
    return select(func.pg_notify(CHANNEL, "")).select_from(added)


_ADD = _adding()


async def add(session: AsyncSession, events: Sequence[Event]) -> None:
    """Write events in the caller's transaction and wake the relay when it commits."""
    for event in events:
        written = {"new_type": event.type, "new_subject": event.subject, "new_body": event.to_json()}
        await session.execute(_ADD, written)


@dataclass(frozen=True, slots=True)
class Pending:
    """An unpublished event and the key under which its store knows it."""

    key: int | str
    event: Event


class OutboxStore(Protocol):
    """Where unpublished events wait. `relay` calls `publish` for them in writing order and keeps what it returns."""

    async def relay_batch(self, publish: "PublishBatch", limit: int) -> int:
        """Hold up to `limit` of the oldest events, `publish` them, mark those it returns; give how many."""
        ...

    async def sweep(self) -> None:
        """Forget events published longer ago than the retention."""

    async def lag(self) -> tuple[int, float]:
        """How many wait, and the age of the oldest in seconds."""
        ...


class PublishBatch(Protocol):
    async def __call__(self, batch: Sequence[Pending]) -> Sequence[int | str]: ...


class SqlOutboxStore:
    """The outbox table of one service's PostgreSQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def relay_batch(self, publish: PublishBatch, limit: int) -> int:
        async with transaction(self._database) as session:
            alone = await session.scalar(select(func.pg_try_advisory_xact_lock(_ADVISORY_LOCK)))
            if not alone:
                return 0
            rows = await session.execute(
                select(outbox_table.c.id, outbox_table.c.body)
                .where(outbox_table.c.published_at.is_(None))
                .order_by(outbox_table.c.id)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            batch = [Pending(row.id, Event.from_json(row.body)) for row in rows]
            if not batch:
                return 0
            done = set(await publish(batch))
            if done:
                await session.execute(
                    update(outbox_table)
                    .where(outbox_table.c.id.in_(bindparam("ids", expanding=True)))
                    .values(published_at=func.now()),
                    {"ids": list(done)},
                )
            failed = [pending.key for pending in batch if pending.key not in done]
            if failed:
                await session.execute(
                    update(outbox_table)
                    .where(outbox_table.c.id.in_(failed))
                    .values(attempts=outbox_table.c.attempts + 1)
                )
            return len(done)

    async def sweep(self) -> None:
        async with transaction(self._database) as session:
            await session.execute(
                outbox_table.delete().where(outbox_table.c.published_at < text(f"now() - interval '{RETENTION}'"))
            )

    async def lag(self) -> tuple[int, float]:
        async with transaction(self._database) as session:
            row = (
                await session.execute(
                    select(
                        func.count(),
                        func.coalesce(func.extract("epoch", func.now() - func.min(outbox_table.c.created_at)), 0),
                    ).where(outbox_table.c.published_at.is_(None))
                )
            ).one()
            return int(row[0]), float(row[1])


class OutboxRelay:
    """Moves a store's events to the bus, in order per subject, until closed."""

    def __init__(
        self,
        store: OutboxStore,
        bus: Bus,
        *,
        notifications: Notifications | None = None,
        metrics: Metrics | None = None,
        batch_size: int = 200,
        poll_s: float = 1.0,
    ) -> None:
        self._store = store
        self._bus = bus
        self._notifications = notifications
        self._metrics = metrics
        self._batch_size = batch_size
        self._poll_s = poll_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="outbox-relay")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            wake = stack.enter_context(self._notifications.watch(CHANNEL)) if self._notifications else asyncio.Queue()
            delay_s = 0.0
            sweeps = 0
            while True:
                moved = 0
                try:
                    moved = await self._store.relay_batch(self._publish, self._batch_size)
                    sweeps += 1
                    if sweeps % 3600 == 1:
                        await self._store.sweep()
                    delay_s = 0.0
                except TelarError as error:
                    delay_s = min(max(delay_s * 2, 0.1), 5.0)
                    _log.warning("outbox_relay_waits", error=error.slug, retry_in_s=delay_s)
                except Exception:  # noqa: BLE001 - the relay outlives any surprise; it is logged with its traceback
                    delay_s = min(max(delay_s * 2, 0.1), 5.0)
                    _log.exception("outbox_relay_failed", retry_in_s=delay_s)
                if moved < self._batch_size:
                    await drain(wake, delay_s or self._poll_s)

    async def _publish(self, batch: Sequence[Pending]) -> Sequence[int | str]:
        lanes: dict[str, list[Pending]] = defaultdict(list)
        for pending in batch:
            lanes[pending.event.subject].append(pending)
        results = await asyncio.gather(*(self._publish_lane(lane) for lane in lanes.values()))
        return [key for keys in results for key in keys]

    async def _publish_lane(self, lane: Sequence[Pending]) -> list[int | str]:
        done: list[int | str] = []
        for pending in lane:
            try:
                await self._bus.publish(pending.event)
            except Unavailable as error:
                _log.info("event_waits", type=pending.event.type, id=pending.event.id, reason=error.slug)
                break  # the subject's later events wait behind this one
            done.append(pending.key)
        return done
