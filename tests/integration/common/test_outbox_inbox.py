"""Outbox, bus and inbox together, on a real database and the bus in process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import func, text

from libs.common.bus import BusUnavailable, LocalBus, RetryPolicy
from libs.common.db import Database, Notifications, transaction
from libs.common.events import Event
from libs.common.inbox import Inbox
from libs.common.outbox import CHANNEL, OutboxRelay, PublishBatch, SqlOutboxStore, outbox_table
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from tests.integration.common.clock_lab import Ticked, count_tick, emptied, handled, rows, tick

Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
async def uow(database: Database) -> UnitOfWorkFactory:
    return await emptied(database)


@pytest.fixture
async def bus() -> AsyncIterator[LocalBus]:
    bus = LocalBus(retry=RetryPolicy(delivery_limit=3, first_delay_s=0.01, longest_delay_s=0.02))
    await bus.start()
    yield bus
    await bus.close()


@pytest.fixture
async def relay(database: Database, bus: LocalBus) -> AsyncIterator[OutboxRelay]:
    notifications = Notifications(database, (CHANNEL,))
    await notifications.start()
    relay = OutboxRelay(SqlOutboxStore(database), bus, notifications=notifications, poll_s=0.2)
    await relay.start()
    yield relay
    await relay.close()
    await notifications.close()


async def test_events_of_one_unit_are_written_in_their_order(uow: UnitOfWorkFactory, database: Database) -> None:
    async with uow() as unit:
        for number in range(20):
            unit.add_event(Ticked(number=number), subject=f"clock-{number % 3}", owner="ada", sequence=number)
        await unit.commit()
    written = [
        Event.from_json(row["body"]) for row in sorted(await rows(database, outbox_table), key=lambda r: r["id"])
    ]
    assert [(event.data["number"], event.subject) for event in written] == [
        (number, f"clock-{number % 3}") for number in range(20)
    ]


@pytest.mark.usefixtures("relay")
async def test_a_committed_event_is_handled_once_and_marked(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database, eventually: Eventually
) -> None:
    await Inbox("counter", bus, uow, {Ticked.event_type: count_tick}).start()
    await tick(uow, "a", 1)

    async def done() -> bool:
        return await handled(database) == {"a": 1} and (await SqlOutboxStore(database).lag())[0] == 0

    await eventually(done)
    assert all(row["published_at"] for row in await rows(database, outbox_table))


@pytest.mark.usefixtures("relay")
async def test_what_was_not_committed_was_not_said(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database, eventually: Eventually
) -> None:
    await Inbox("counter", bus, uow, {Ticked.event_type: count_tick}).start()
    await tick(uow, "silent", 1, commit=False)
    await tick(uow, "loud", 1)

    async def loud() -> bool:
        return "loud" in await handled(database)

    await eventually(loud)
    assert await handled(database) == {"loud": 1}


@pytest.mark.usefixtures("relay")
async def test_a_failing_handler_ends_as_a_dead_letter_that_can_be_replayed(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database, eventually: Eventually
) -> None:
    broken = True

    async def handle(unit: UnitOfWork, event: Event) -> None:
        await count_tick(unit, event)
        if broken and event.subject == "poison":
            raise RuntimeError("cannot digest this")

    inbox = Inbox("counter", bus, uow, {Ticked.event_type: handle})
    await inbox.start()
    await tick(uow, "poison", 1)
    await tick(uow, "fine", 1)

    async def dead() -> bool:
        return len(await inbox.dead_letters(before=None, limit=10)) == 1 and "fine" in await handled(database)

    await eventually(dead)
    letter = (await inbox.dead_letters(before=None, limit=10))[0]
    assert "cannot digest this" in letter["reason"]
    assert letter["deliveries"] == 3
    assert "poison" not in await handled(database)

    broken = False
    await inbox.replay(letter["id"])

    async def replayed() -> bool:
        return (await handled(database)).get("poison") == 1

    await eventually(replayed)
    assert await inbox.dead_letters(before=None, limit=10) == []


class Moody(LocalBus):
    """A bus that is away until told otherwise."""

    away = True

    async def publish(self, event: Event) -> None:
        if self.away:
            raise BusUnavailable
        await super().publish(event)


async def test_a_bus_that_is_away_loses_nothing(
    uow: UnitOfWorkFactory, database: Database, eventually: Eventually
) -> None:
    bus = Moody()
    await bus.start()
    await Inbox("counter", bus, uow, {Ticked.event_type: count_tick}).start()
    relay = OutboxRelay(SqlOutboxStore(database), bus, poll_s=0.05)
    await relay.start()
    for number in range(1, 21):
        await tick(uow, f"s{number % 4}", number)

    async def tried() -> bool:
        return any(row["attempts"] for row in await rows(database, outbox_table))

    await eventually(tried)
    waiting, age_s = await SqlOutboxStore(database).lag()
    assert waiting == 20
    assert age_s > 0
    bus.away = False

    async def arrived() -> bool:
        return sum((await handled(database)).values()) == 20

    await eventually(arrived)
    await relay.close()
    await bus.close()


async def test_two_relays_keep_the_order_of_each_subject(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database, eventually: Eventually
) -> None:
    seen: dict[str, list[int]] = {}

    async def note(_unit: UnitOfWork, event: Event) -> None:
        seen.setdefault(event.subject, []).append(event.sequence)

    await Inbox("counter", bus, uow, {Ticked.event_type: note}).start()
    for number in range(1, 61):
        await tick(uow, f"s{number % 3}", number)
    relays = [OutboxRelay(SqlOutboxStore(database), bus, poll_s=0.02, batch_size=7) for _ in range(2)]
    for relay in relays:
        await relay.start()

    async def all_seen() -> bool:
        return sum(map(len, seen.values())) == 60

    await eventually(all_seen)
    for relay in relays:
        await relay.close()
    assert all(numbers == sorted(numbers) for numbers in seen.values())


async def test_a_relay_that_cannot_publish_leaves_its_turn_to_one_that_can(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database, eventually: Eventually
) -> None:
    await Inbox("counter", bus, uow, {Ticked.event_type: count_tick}).start()
    for number in range(1, 21):
        await tick(uow, f"s{number % 4}", number)
    moody = Moody()
    await moody.start()
    relays = [OutboxRelay(SqlOutboxStore(database), one, poll_s=0.02) for one in (moody, bus)]
    await relays[0].start()

    async def tried() -> bool:
        return any(row["attempts"] for row in await rows(database, outbox_table))

    await eventually(tried)
    await relays[1].start()

    async def arrived() -> bool:
        return sum((await handled(database)).values()) == 20

    await eventually(arrived)
    assert await handled(database) == {f"s{number}": 5 for number in range(4)}
    for relay in relays:
        await relay.close()
    await moody.close()


class Watched(SqlOutboxStore):
    """Counts the batches that were asked for."""

    batches = 0

    async def relay_batch(self, publish: PublishBatch, limit: int) -> int:
        self.batches += 1
        return await super().relay_batch(publish, limit)


async def test_a_relay_reads_nothing_while_its_bus_is_away(
    uow: UnitOfWorkFactory, database: Database, eventually: Eventually
) -> None:
    bus, store = LocalBus(), Watched(database)
    relay = OutboxRelay(store, bus, poll_s=0.02)
    await relay.start()
    await tick(uow, "one", 1)
    await asyncio.sleep(0.3)
    assert store.batches == 0
    await bus.start()
    await Inbox("counter", bus, uow, {Ticked.event_type: count_tick}).start()

    async def arrived() -> bool:
        return "one" in await handled(database)

    await eventually(arrived)
    await relay.close()
    await bus.close()


@pytest.mark.usefixtures("relay")
async def test_a_relay_whose_session_is_ended_goes_on_with_another(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database, eventually: Eventually
) -> None:
    holder = text(
        "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
        " WHERE locktype = 'advisory' AND datname = current_database()"
    )
    await Inbox("counter", bus, uow, {Ticked.event_type: count_tick}).start()
    await tick(uow, "before", 1)

    async def arrived(subject: str) -> bool:
        return subject in await handled(database)

    await eventually(lambda: arrived("before"))
    async with transaction(database) as session:
        pids = list((await session.execute(holder)).scalars())
        assert len(pids) == 1
        await session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pids[0]})
    await tick(uow, "after", 1)
    await eventually(lambda: arrived("after"))
    assert await handled(database) == {"before": 1, "after": 1}


async def test_only_published_events_are_swept(uow: UnitOfWorkFactory, database: Database) -> None:
    await tick(uow, "new", 1)
    await tick(uow, "old", 1)
    async with transaction(database) as session:
        await session.execute(
            outbox_table.update()
            .where(outbox_table.c.subject == "old")
            .values(published_at=func.now() - func.make_interval(0, 0, 0, 8))
        )
    await SqlOutboxStore(database).sweep()
    assert [row["subject"] for row in await rows(database, outbox_table)] == ["new"]
