"""Two services, their databases and a real broker that is killed again and again: nothing lost, nothing doubled."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import ClassVar

import pytest
from sqlalchemy import BigInteger, Column, MetaData, Table, Text, func, select
from sqlalchemy.dialects.postgresql import insert

from libs.common.bus import AmqpBus, RetryPolicy
from libs.common.db import Database, Notifications, transaction
from libs.common.events import Event, Payload
from libs.common.ids import uuid7
from libs.common.inbox import Inbox, inbox_table
from libs.common.outbox import CHANNEL, OutboxRelay, SqlOutboxStore, outbox_table
from libs.common.testing.stack import RabbitMq
from libs.common.uow import UnitOfWork, UnitOfWorkFactory

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(300)]

Eventually = Callable[..., Awaitable[None]]
KILLS = (1, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(900)]))
EVENTS_PER_KILL = 60
ledger = Table(
    "ledger",
    MetaData(),
    Column("subject", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("times", BigInteger, nullable=False),
)


class Paid(Payload):
    event_type: ClassVar[str] = "till.sum.paid.v1"


async def enter(uow: UnitOfWork, event: Event) -> None:
    """Count each handling of each event: any number but one is a fault."""
    fresh = insert(ledger).values(subject=event.subject, number=event.sequence, times=1)
    await uow.session.execute(
        fresh.on_conflict_do_update(index_elements=["subject", "number"], set_={"times": ledger.c.times + 1})
    )


@pytest.fixture
async def sender(database: Database, rabbitmq: RabbitMq, eventually: Eventually) -> AsyncIterator[UnitOfWorkFactory]:
    """A service that says things, with its relay, and one that enters them in a ledger, on buses of their own."""
    async with database.engine.begin() as connection:
        await connection.run_sync(ledger.metadata.create_all)
        for table in (outbox_table, inbox_table):
            await connection.execute(table.delete())
    uow = UnitOfWorkFactory(database, source="/telar/till")
    retry = RetryPolicy(delivery_limit=5, first_delay_s=0.01, longest_delay_s=0.1)
    buses = [AmqpBus(rabbitmq.amqp_url, source=name, retry=retry) for name in ("till", "ledger")]
    await Inbox(f"ledger-{uuid7().hex[:8]}", buses[1], uow, {Paid.event_type: enter}).start()
    for bus in reversed(buses):
        await bus.start()
    await eventually(lambda: all(bus.ready() for bus in buses), 30)
    await asyncio.to_thread(rabbitmq.sync_register)
    notifications = Notifications(database, (CHANNEL,))
    await notifications.start()
    relay = OutboxRelay(SqlOutboxStore(database), buses[0], notifications=notifications, poll_s=0.2)
    await relay.start()
    yield uow
    await relay.close()
    await notifications.close()
    for bus in buses:
        await bus.close()


@pytest.mark.parametrize("kills", KILLS)
async def test_a_broker_killed_under_load_loses_no_event_and_doubles_no_effect(
    sender: UnitOfWorkFactory,
    database: Database,
    rabbitmq: RabbitMq,
    eventually: Eventually,
    kills: int,
) -> None:
    events = EVENTS_PER_KILL * kills

    async def keep_paying() -> None:
        for number in range(events):
            async with sender() as unit:
                unit.add_event(Paid(), subject=f"s{number % 5}", sequence=number)
                await unit.commit()
            await asyncio.sleep(0.01)

    async def keep_killing() -> None:
        for _ in range(kills):
            await asyncio.to_thread(rabbitmq.kill)
            await asyncio.to_thread(rabbitmq.start)
            await asyncio.to_thread(rabbitmq.wait_ready, 60)

    await asyncio.gather(keep_paying(), keep_killing())

    async def all_entered() -> bool:
        async with transaction(database) as session:
            entered = await session.scalar(select(func.count()).select_from(ledger))
        return entered == events and (await SqlOutboxStore(database).lag())[0] == 0

    await eventually(all_entered, 60)
    async with transaction(database) as session:
        doubled = await session.scalar(select(func.count()).select_from(ledger).where(ledger.c.times != 1))
    assert doubled == 0
