"""What an inbox makes of events that come at once: one transaction for many, and each failure its own event's."""

import asyncio
import random
from collections.abc import Iterable
from contextvars import copy_context

import pytest
from sqlalchemy.dialects.postgresql import insert

from libs.common.bus import Delivery, LocalBus, TransientFailure
from libs.common.db import Database
from libs.common.events import Event
from libs.common.inbox import Inbox, NewestOnly, inbox_table
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from tests.integration.common.clock_lab import Ticked, count_tick, counted, counters, emptied, handled, rows


@pytest.fixture
async def uow(database: Database) -> UnitOfWorkFactory:
    return await emptied(database)


@pytest.fixture
def bus() -> LocalBus:
    return LocalBus()


def delivered(unit: UnitOfWork, subject: str, sequences: Iterable[int]) -> list[Delivery]:
    """A run of the subject's events, as a bus gives them."""
    events = [unit.add_event(Ticked(number=n), subject=subject, sequence=n) for n in sequences]
    return [Delivery(event, copy_context()) for event in events]


async def test_every_event_three_times_shuffled_leaves_the_same_as_once_in_order(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database
) -> None:
    inbox = Inbox("counter", bus, uow, {Ticked.event_type: count_tick})
    events: list[Event] = []
    async with uow() as unit:
        for subject in ("a", "b"):
            events += [unit.add_event(Ticked(number=n), subject=subject, sequence=n) for n in range(1, 11)]
    thrice = events * 3
    random.Random(7).shuffle(thrice)  # noqa: S311 - an order, no secret
    await asyncio.gather(*(inbox.handle(event) for event in thrice))
    assert await counted(database) == {
        "a": (10, 10),
        "b": (10, 10),
    }


async def test_an_event_that_fails_takes_none_with_it_that_came_at_the_same_time(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database
) -> None:
    async def handle(unit: UnitOfWork, event: Event) -> None:
        await count_tick(unit, event)
        if event.subject == "bad":
            raise RuntimeError("cannot digest this")

    inbox = Inbox("counter", bus, uow, {Ticked.event_type: handle})
    async with uow() as unit:
        names = ["a", "b", "bad", "c", "d"]
        events = [unit.add_event(Ticked(number=1), subject=name, sequence=1) for name in names]
    told = await asyncio.gather(*(inbox.handle(event) for event in events), return_exceptions=True)
    assert [str(fault) for fault in told] == ["None", "None", "cannot digest this", "None", "None"]
    assert await handled(database) == dict.fromkeys("abcd", 1)
    assert len(await rows(database, inbox_table)) == 4


async def test_a_subjects_events_are_handled_together_or_not_at_all(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database
) -> None:
    async def handle(unit: UnitOfWork, event: Event) -> None:
        await count_tick(unit, event)
        if event.subject == "bad" and event.sequence == 3:
            raise RuntimeError("cannot digest this")

    inbox = Inbox("counter", bus, uow, {Ticked.event_type: handle})
    async with uow() as unit:
        runs = [delivered(unit, name, range(1, 6)) for name in ("good", "bad", "fine")]
    told = await asyncio.gather(*(inbox.handle_together(run) for run in runs), return_exceptions=True)
    assert [str(fault) for fault in told] == ["None", "cannot digest this", "None"]
    assert await counted(database) == {
        "good": (5, 5),
        "fine": (5, 5),
    }
    assert len(await rows(database, inbox_table)) == 10


async def test_events_that_come_while_others_are_handled_share_a_transaction(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database
) -> None:
    units: list[UnitOfWork] = []

    async def handle(unit: UnitOfWork, event: Event) -> None:
        units.append(unit)
        await count_tick(unit, event)

    inbox = Inbox("counter", bus, uow, {Ticked.event_type: handle})
    async with uow() as unit:
        events = [unit.add_event(Ticked(number=1), subject=f"s{number}", sequence=1) for number in range(100)]
    await asyncio.gather(*(inbox.handle(event) for event in events))
    assert len(units) == 100
    assert len({id(unit) for unit in units}) <= 4
    assert len(await handled(database)) == 100


async def test_of_events_that_tell_all_of_their_subject_only_the_newest_at_hand_is_handled(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database
) -> None:
    inbox = Inbox("counter", bus, uow, {Ticked.event_type: NewestOnly(count_tick)})
    async with uow() as unit:
        runs = [delivered(unit, name, order) for name, order in (("a", (1, 2, 3)), ("b", (2, 3, 1)), ("c", (1,)))]
    await asyncio.gather(*(inbox.handle_together(run) for run in runs))
    assert await counted(database) == {
        "a": (1, 3),
        "b": (1, 3),
        "c": (1, 1),
    }
    assert len(await rows(database, inbox_table)) == 7


async def test_a_closed_inbox_leaves_events_to_others_and_has_finished_its_own(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database
) -> None:
    begun = asyncio.Event()

    async def handle(unit: UnitOfWork, event: Event) -> None:
        begun.set()
        await asyncio.sleep(0.05)
        await count_tick(unit, event)

    inbox = Inbox("counter", bus, uow, {Ticked.event_type: handle})
    async with uow() as unit:
        events = [unit.add_event(Ticked(number=1), subject=name, sequence=1) for name in ("a", "b")]
    under_way = asyncio.create_task(inbox.handle(events[0]))
    await begun.wait()
    under_way.cancel()  # as a bus does that stops
    await inbox.close()
    assert await handled(database) == {"a": 1}
    with pytest.raises(TransientFailure):
        await inbox.handle(events[1])


async def test_two_batches_that_meet_at_their_owners_rows_never_wait_for_each_other(
    uow: UnitOfWorkFactory, bus: LocalBus, database: Database
) -> None:
    async def handle(unit: UnitOfWork, event: Event) -> None:
        owner = insert(counters).values(subject=event.owner, handled=1, last=0)
        more = {"handled": counters.c.handled + 1}
        await unit.session.execute(owner.on_conflict_do_update(index_elements=["subject"], set_=more))
        await asyncio.sleep(0.2)

    inbox = Inbox("counter", bus, uow, {Ticked.event_type: handle})
    async with uow() as unit:
        first, second = (
            [unit.add_event(Ticked(number=1), subject=f"{batch}-{owner}", owner=owner) for owner in owners]
            for batch, owners in (("first", ("ada", "bob")), ("second", ("bob", "ada")))
        )
    at_once = [asyncio.create_task(inbox.handle(event)) for event in first]
    await asyncio.sleep(0.1)  # a batch holds the next one up no longer than that
    at_once += [asyncio.create_task(inbox.handle(event)) for event in second]
    await asyncio.gather(*at_once)
    assert await handled(database) == {"ada": 2, "bob": 2}
