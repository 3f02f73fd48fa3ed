"""The transactional outbox: events are written with the change they tell of, then relayed to the bus.

The relay reads the oldest rows, publishes, waits for the confirms and marks them. One relay at a time works per
database (an advisory lock), so that the events of a subject leave in the order they were written.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter
from typing import Any, Protocol

import psycopg
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
)
from sqlalchemy import column as sql_column
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.bus.protocol import Bus
from libs.common.db import COMMON_METADATA, Database, Notifications, database_errors, drain, transaction
from libs.common.errors import TelarError, Unavailable
from libs.common.events import Event
from libs.common.tasks import cancel

CHANNEL = "telar_outbox"
RETENTION = "7 days"
_ADVISORY_LOCK = 0x7E1A_0B0C
_RELAYS_OPTIONS = "-c synchronous_commit=off -c idle_session_timeout=60s"
_TAKE_TURN = "SELECT pg_try_advisory_lock(%s)"
_LEAVE_TURN = "SELECT pg_advisory_unlock(%s)"
_OLDEST = "SELECT id, body FROM outbox WHERE published_at IS NULL ORDER BY id LIMIT %s"
_MARK = "UPDATE outbox SET published_at = now() WHERE id = ANY(%s)"
_COUNT_ATTEMPT = "UPDATE outbox SET attempts = attempts + 1 WHERE id = ANY(%s)"

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

_WRITTEN = ("type", "subject", "body")
_log = structlog.get_logger()


def _adding() -> Select[Any]:
    """Write events in their order and wake the relay, in one statement."""
    columns = [outbox_table.c[name] for name in _WRITTEN]
    given = (
        func.unnest(*(bindparam(column.name, type_=ARRAY(column.type)) for column in columns))
        .table_valued(*(sql_column(column.name, column.type) for column in columns), with_ordinality="place")
        .render_derived()
    )
    written = select(*(given.c[name] for name in _WRITTEN)).order_by(given.c.place)
    added = insert(outbox_table).from_select(_WRITTEN, written).returning(outbox_table.c.id).cte("added")
    return select(func.pg_notify(CHANNEL, "")).where(select(added.c.id).exists())


_ADD = _adding()


async def add(session: AsyncSession, events: Sequence[Event]) -> None:
    """Write events in the caller's transaction and wake the relay when it commits."""
    bodies = [event.to_json() for event in events]
    written = {"type": [event.type for event in events], "subject": [event.subject for event in events], "body": bodies}
    await session.execute(_ADD, written)


@dataclass(frozen=True, slots=True)
class Pending:
    """An unpublished event and the key under which its store knows it."""

    key: int | str
    event: Event


class OutboxStore(Protocol):
    """Where unpublished events wait, in the order in which they were written."""

    async def relay_batch(self, publish: "PublishBatch", limit: int) -> int:
        """Read up to `limit` of the oldest events, `publish` them, mark those it returns; give how many.

        Only one process's store does so at a time; the others give 0.
        """
        ...

    async def close(self) -> None:
        """Leave the turn to another process."""

    async def sweep(self) -> None:
        """Forget events published longer ago than the retention."""

    async def lag(self) -> tuple[int, float]:
        """How many wait, and the age of the oldest in seconds."""
        ...


class PublishBatch(Protocol):
    async def __call__(self, batch: Sequence[Pending]) -> Sequence[int | str]: ...


class SqlOutboxStore:
    """The outbox table of one service's PostgreSQL database.

    It relays over a connection of its own, whose session holds the lock: a process that dies loses its turn at once,
    one that stands still when the server ends its silent session. Marks do not wait for the disk: an event whose mark
    is lost is published again, and the inbox drops it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._has_turn = False

    async def relay_batch(self, publish: PublishBatch, limit: int) -> int:
        with database_errors():
            try:
                return await self._relay_batch(publish, limit)
            except BaseException:
                await self.close()
                raise

    async def _relay_batch(self, publish: PublishBatch, limit: int) -> int:
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(
                self._database.conninfo, autocommit=True, connect_timeout=5, options=_RELAYS_OPTIONS
            )
        ask = self._connection.execute
        if not self._has_turn:
            answer = await (await ask(_TAKE_TURN, (_ADVISORY_LOCK,))).fetchone()
            self._has_turn = answer is not None and answer[0]
        if not self._has_turn:
            return 0
        rows = await (await ask(_OLDEST, (limit,), binary=True)).fetchall()
        if not rows:
            return 0
        done = set(await publish([Pending(key, Event.from_json(body)) for key, body in rows]))
        if done:
            await ask(_MARK, (list(done),))
        if len(done) < len(rows):
            await ask(_COUNT_ATTEMPT, ([key for key, _ in rows if key not in done],))
        if not done:  # another process may reach a broker that this one does not
            await ask(_LEAVE_TURN, (_ADVISORY_LOCK,))
            self._has_turn = False
        return len(done)

    async def close(self) -> None:
        connection, self._connection, self._has_turn = self._connection, None, False
        if connection is not None:
            await connection.close()

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
        batch_size: int = 200,
        poll_s: float = 1.0,
    ) -> None:
        self._store = store
        self._bus = bus
        self._notifications = notifications
        self._batch_size = batch_size
        self._poll_s = poll_s
        self._woken: asyncio.Queue[str] = asyncio.Queue(maxsize=1)
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """An event was written, to a store that sends no notifications: look at once."""
        with contextlib.suppress(asyncio.QueueFull):
            self._woken.put_nowait("")

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="outbox-relay")

    async def close(self) -> None:
        if self._task is not None:
            await cancel(self._task)
            self._task = None
        await self._store.close()

    async def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            wake = stack.enter_context(self._notifications.watch(CHANNEL)) if self._notifications else self._woken
            delay_s = 0.0
            sweeps = 0
            while True:
                moved = 0
                try:
                    if self._bus.ready():
                        moved = await self._store.relay_batch(self._publish, self._batch_size)
                    else:  # another process may reach the broker; each try would read and refuse a whole batch
                        await self._store.close()
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
        """Publish a subject's events: all behind the first go out at once, in their order.

        What follows one that was refused is not done either: it comes again, behind that one.
        """
        if not await self._is_confirmed(lane[0]):
            return []
        confirmed = [True, *await asyncio.gather(*map(self._is_confirmed, lane[1:]))]
        told = zip(lane, confirmed, strict=True)
        return [pending.key for pending, _ in takewhile(itemgetter(1), told)]

    async def _is_confirmed(self, pending: Pending) -> bool:
        try:
            await self._bus.publish(pending.event)
        except Unavailable as error:
            _log.info("event_waits", type=pending.event.type, id=pending.event.id, reason=error.slug)
            return False
        return True
