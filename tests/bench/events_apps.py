"""The processes that the events' benchmark compares: `python -m tests.bench.events_apps NAME …`, NAME a function here.

`relay`, `steady` and `receive` are two services of Telar on databases of their own; `bare_send` and `bare_receive` are
what aio-pika does alone: pipelined publishes with `mandatory` and confirms, an acknowledgement for each message. Each
prints `ready`, waits for a line, and prints what it found as JSON.
"""

import asyncio
import json
import logging
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import aio_pika
import structlog
import uvloop
from aio_pika.abc import AbstractIncomingMessage
from sqlalchemy import BigInteger, Column, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import insert

from cli.process import keep_what_was_made
from libs.common.bus import AmqpBus
from libs.common.bus.amqp.topology import declare_events, declare_subscription
from libs.common.db import COMMON_METADATA, Database, Notifications
from libs.common.events import CONTENT_TYPE, Event, Payload
from libs.common.inbox import Inbox
from libs.common.outbox import CHANNEL, OutboxRelay, SqlOutboxStore
from libs.common.quotas import ResourceRef, Usage
from libs.common.telemetry import setup_tracing
from libs.common.uow import UnitOfWork, UnitOfWorkFactory

SUBJECTS = 1_000
WINDOW = 200
"""Publishes under way at a time by hand; as many as a batch of the relay."""
PREFETCH = 256
_WRITTEN_AT_ONCE = 200
_state = Table("state", MetaData(), Column("subject", Text, primary_key=True), Column("number", BigInteger))


class Woven(Payload):
    """An event of the size of a machine's; `due_s` is on the system's monotonic clock, which processes share."""

    event_type: ClassVar[str] = "bench.cloth.woven.v1"
    number: int
    due_s: float
    resource: ResourceRef = ResourceRef(type="vm", id="018f0000-0000-7000-8000-000000000001", name="web-1")
    usage: Usage = Usage(used={"vms": 3, "cores": 6, "memory_mib": 12_288, "disk_gib": 120}, sequence=7)


def _say(what: Any) -> None:
    print(json.dumps(what), flush=True)


async def _told_to_go() -> None:
    keep_what_was_made()
    _say("ready")
    await asyncio.to_thread(sys.stdin.readline)


def _add(unit: UnitOfWork, number: int, due_s: float) -> Event:
    return unit.add_event(
        Woven(number=number, due_s=due_s), subject=f"s{number % SUBJECTS}", owner="somebody", sequence=number
    )


@asynccontextmanager
async def _service(database_url: str, amqp_url: str, name: str) -> Any:
    """A database with its tables, units of work over it, and a bus; closed at the end of the block."""
    database = Database(database_url, application_name=name)
    async with database.engine.begin() as connection:
        await connection.run_sync(COMMON_METADATA.create_all)
        await connection.run_sync(_state.metadata.create_all)
    bus = AmqpBus(amqp_url, source=name)
    yield database, UnitOfWorkFactory(database, source=f"/telar/{name}"), bus
    await bus.close()
    await database.close()


@asynccontextmanager
async def _relaying(database: Database, bus: AmqpBus) -> Any:
    notifications = Notifications(database, (CHANNEL,))
    await notifications.start()
    relay = OutboxRelay(SqlOutboxStore(database), bus, notifications=notifications)
    await relay.start()
    yield
    await relay.close()
    await notifications.close()


async def relay(database_url: str, amqp_url: str, count: str) -> None:
    """Write `count` events, and publish them when told to."""
    async with _service(database_url, amqp_url, "sender") as (database, uow, bus):
        for first in range(0, int(count), _WRITTEN_AT_ONCE):
            async with uow() as unit:
                for number in range(first, min(int(count), first + _WRITTEN_AT_ONCE)):
                    _add(unit, number, 0.0)
                await unit.commit()
        await bus.start()
        await _told_to_go()
        _say({"began_s": time.monotonic()})
        async with _relaying(database, bus):
            await asyncio.to_thread(sys.stdin.readline)


async def steady(database_url: str, amqp_url: str, count: str, per_second: str) -> None:
    """Write `count` events, each when it is due and in a transaction of its own, while they are published."""

    async def write(number: int, due_s: float) -> None:
        async with uow() as unit:
            _add(unit, number, due_s)
            await unit.commit()

    async with _service(database_url, amqp_url, "sender") as (database, uow, bus):
        await bus.start()
        async with _relaying(database, bus):
            await _told_to_go()
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as writing:
                for number in range(int(count)):
                    due_s = began_s + number / float(per_second)
                    await asyncio.sleep(due_s - time.monotonic())
                    writing.create_task(write(number, due_s))
            _say({"began_s": began_s})
            await asyncio.to_thread(sys.stdin.readline)


class _TimedInbox(Inbox):
    """An inbox that notes how long after it was due each event's transaction was through; `done` after `wanted`."""

    def __init__(self, wanted: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.took_ms: list[float] = []
        self.done = asyncio.Event()
        self._wanted = wanted

    async def handle(self, event: Event) -> None:
        await super().handle(event)
        self.took_ms.append((time.monotonic() - event.data["due_s"]) * 1000)
        if len(self.took_ms) == self._wanted:
            self.done.set()


async def receive(database_url: str, amqp_url: str, count: str, handler: str, uncounted: str = "0") -> None:
    """Handle `count` events; `handler` is `nothing`, or `entry` for one that writes a row.

    How long it took counts but for the first `uncounted`, which open the connections.
    """

    async def entry(unit: UnitOfWork, event: Event) -> None:
        row = insert(_state).values(subject=event.subject, number=event.sequence)
        await unit.session.execute(
            row.on_conflict_do_update(index_elements=["subject"], set_={"number": row.excluded.number})
        )

    async def nothing(_unit: UnitOfWork, _event: Event) -> None:
        return

    async with _service(database_url, amqp_url, "receiver") as (_, uow, bus):
        handlers = {Woven.event_type: {"entry": entry, "nothing": nothing}[handler]}
        inbox = _TimedInbox(int(count), "receiver", bus, uow, handlers)
        await inbox.start()
        await bus.start()
        await _told_to_go()
        await inbox.done.wait()
        ended_s, took_ms = time.monotonic(), inbox.took_ms[int(uncounted) :]
        shares = statistics.quantiles(took_ms, n=100)
        _say({"ended_s": ended_s, "p50_ms": shares[49], "p99_ms": shares[98], "most_ms": max(took_ms)})


async def bare_send(amqp_url: str, count: str) -> None:
    unit = UnitOfWorkFactory(Database("postgresql://nobody@127.0.0.1/nothing"), source="/telar/sender")()
    bodies = [_add(unit, number, 0.0).to_json() for number in range(int(count))]
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await declare_events(channel)
        window = asyncio.Semaphore(WINDOW)

        async def publish(body: bytes, number: int) -> None:
            message = aio_pika.Message(
                body,
                content_type=CONTENT_TYPE,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                message_id=str(number),
            )
            await exchange.publish(message, Woven.event_type, mandatory=True)
            window.release()

        await _told_to_go()
        _say({"began_s": time.monotonic()})
        async with asyncio.TaskGroup() as publishing:
            for number, body in enumerate(bodies):
                await window.acquire()
                publishing.create_task(publish(body, number))
        await asyncio.to_thread(sys.stdin.readline)


async def bare_receive(amqp_url: str, count: str) -> None:
    seen = 0
    done = asyncio.Event()

    async def take(message: AbstractIncomingMessage) -> None:
        nonlocal seen
        json.loads(message.body)
        await message.ack()
        seen += 1
        if seen == int(count):
            done.set()

    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queues = await declare_subscription(channel, "bare", [Woven.event_type], 20)
        await channel.set_qos(PREFETCH)
        await queues.main.consume(take)
        await _told_to_go()
        await done.wait()
        _say({"ended_s": time.monotonic()})


ROLES: dict[str, Callable[..., Awaitable[None]]] = {
    role.__name__: role for role in (relay, steady, receive, bare_send, bare_receive)
}

if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    setup_tracing("bench", None)
    uvloop.run(ROLES[sys.argv[1]](*sys.argv[2:]))
