import asyncio

import pytest

from libs.common.bus import AmqpBus, BusUnavailable, LocalBroker, LocalBus, TransientFailure, create_bus
from libs.common.events import Event
from libs.common.testing.bus_contract import RETRY, Inbox, Names, until


async def test_nothing_passes_a_shared_broker_before_it_is_opened() -> None:
    broker, names, inbox = LocalBroker(), Names(), Inbox()
    first, second = LocalBus(broker), LocalBus(broker)
    await first.start()
    assert not first.ready()
    with pytest.raises(BusUnavailable):
        await first.publish(names.event("s", 1))
    await second.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
    await second.start()
    broker.open()
    assert first.ready()
    await first.publish(names.event("s", 1))
    assert inbox.numbers("s") == [1]
    await first.close()
    await second.close()


async def test_publishing_returns_when_every_queue_has_handled_the_event() -> None:
    bus, names, quick, slow = LocalBus(retry=RETRY), Names(), Inbox(), Inbox(failures={"s": [ValueError("once")]})
    await bus.start()
    await bus.subscribe(names.queue("quick"), [names.all], quick.handle, quick.bury)
    await bus.subscribe(names.queue("slow"), [names.all], slow.handle, slow.bury)
    await bus.publish(names.event("s", 1))
    assert quick.numbers("s") == slow.numbers("s") == [1]
    await bus.close()


async def test_an_event_that_takes_too_long_goes_back_with_those_behind_it() -> None:
    bus, names, inbox, away = LocalBus(retry=RETRY, publish_timeout_s=0.2), Names(), Inbox(), True

    async def handle(event: Event) -> None:
        if away:
            raise TransientFailure("its database is away")
        await inbox.handle(event)

    await bus.start()
    await bus.subscribe(names.queue(), [names.all], handle, inbox.bury)
    results = await asyncio.gather(*(bus.publish(names.event("s", n)) for n in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [BusUnavailable] * 3
    away = False
    await asyncio.gather(*(bus.publish(names.event("s", n)) for n in range(3)))
    assert inbox.numbers("s") == [0, 1, 2]
    await bus.close()


async def test_a_sender_that_gives_up_takes_its_event_back() -> None:
    bus, names, inbox, seen = LocalBus(retry=RETRY), Names(), Inbox(), []

    async def handle(event: Event) -> None:
        seen.append(event.sequence)
        if event.sequence == 0:
            raise TransientFailure("never")
        await inbox.handle(event)

    await bus.start()
    await bus.subscribe(names.queue(), [names.all], handle, inbox.bury)
    sending = asyncio.create_task(bus.publish(names.event("s", 0)))
    await until(lambda: len(seen) > 1)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await bus.publish(names.event("s", 1))
    assert inbox.numbers("s") == [1]
    await bus.close()


async def test_a_queue_whose_service_has_left_takes_no_events() -> None:
    broker, names, inbox = LocalBroker(), Names(), Inbox()
    broker.open()
    sender, leaving = LocalBus(broker), LocalBus(broker)
    await sender.start()
    await leaving.start()
    await leaving.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
    await leaving.close()
    with pytest.raises(BusUnavailable):
        await sender.publish(names.event())
    await sender.close()


async def test_handlers_of_different_subjects_run_side_by_side_up_to_the_limit() -> None:
    bus, names, inbox, running, most = LocalBus(concurrency=4), Names(), Inbox(), 0, 0

    async def handle(event: Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await inbox.handle(event)
        running -= 1

    await bus.start()
    await bus.subscribe(names.queue(), [names.all], handle, inbox.bury)
    await asyncio.gather(*(bus.publish(names.event(f"s{n}", n)) for n in range(20)))
    assert most == 4
    await bus.close()


async def test_the_url_chooses_the_bus() -> None:
    assert isinstance(create_bus("local:", source="test"), LocalBus)
    assert isinstance(create_bus("amqps://u:p@broker/vhost", source="test"), AmqpBus)
    with pytest.raises(ValueError, match="local:, amqp:// or amqps://") as caught:
        create_bus("redis://user:canary@host", source="test")
    assert "canary" not in str(caught.value)
