import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import aio_pika
import pytest

from libs.common.bus import AmqpBus, BusUnavailable, Unroutable
from libs.common.events import Event
from libs.common.testing.bus_contract import RETRY, Inbox, Names, until
from libs.common.testing.stack import RabbitMq

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(300)]

# Each takes a few seconds.
KILLS = (1, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(900)]))
ANSWERS_S = 20  # what would hang takes longer

# A replica that dies of an event, over and over: `python -c CRASHING url queue binding`.
CRASHING = """
import asyncio, os, sys
from libs.common.bus import AmqpBus

async def die(*_):
    os._exit(3)

async def main():
    bus = AmqpBus(sys.argv[1], source="crashing", broker_delivery_limit=2)
    await bus.subscribe(sys.argv[2], [sys.argv[3]], die, die)
    await bus.start()
    await asyncio.sleep(60)

asyncio.run(main())
"""


class Started:
    """Makes started buses on one broker and closes them after the test."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[AmqpBus] = []

    async def bus(self, *, publish_timeout_s: float = 5, broker_delivery_limit: int = 20) -> AmqpBus:
        bus = AmqpBus(
            self.url,
            source="test",
            retry=RETRY,
            publish_timeout_s=publish_timeout_s,
            broker_delivery_limit=broker_delivery_limit,
        )
        self._made.append(bus)
        await bus.start()
        return bus

    async def close(self) -> None:
        await asyncio.gather(*(bus.close() for bus in self._made))


@pytest.fixture
async def started(rabbitmq: RabbitMq) -> AsyncIterator[Started]:
    started = Started(rabbitmq.amqp_url)
    yield started
    await started.close()


@pytest.fixture
async def names(rabbitmq: RabbitMq) -> AsyncIterator[Names]:
    names = Names()
    yield names
    async with await aio_pika.connect(rabbitmq.amqp_url) as connection:
        channel = await connection.channel()
        await channel.queue_delete(f"telar.{names.queue()}")
        await channel.queue_delete(f"telar.{names.queue()}.dead")


@pytest.fixture
def low_memory(rabbitmq: RabbitMq) -> Iterator[None]:
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")
    yield
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.6")


async def publish_in_turn(bus: AmqpBus, names: Names, subject: str, confirmed: list[int], stop: asyncio.Event) -> None:
    """Publish 0, 1, 2 … of one subject, each again until it is confirmed, as an outbox relay does."""
    number = 0
    while not stop.is_set():
        try:
            await bus.publish(names.event(subject, number))
        except (BusUnavailable, Unroutable):
            await asyncio.sleep(0.05)
            continue
        confirmed.append(number)
        number += 1


async def inbox_grows(inbox: Inbox) -> None:
    goal = len(inbox.events) + 200
    await until(lambda: len(inbox.events) >= goal, 60)


def first_occurrences(numbers: list[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


@pytest.mark.parametrize("kills", KILLS)
async def test_no_confirmed_event_is_lost_or_overtaken_while_the_broker_is_killed(
    rabbitmq: RabbitMq, started: Started, names: Names, kills: int
) -> None:
    sender, first, second = await started.bus(), await started.bus(), await started.bus()
    inbox = Inbox()
    for replica in (first, second):
        await replica.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
    await asyncio.to_thread(rabbitmq.sync_register)
    confirmed: defaultdict[str, list[int]] = defaultdict(list)
    stop = asyncio.Event()
    subjects = [f"s{n}" for n in range(5)]
    async with asyncio.TaskGroup() as group:
        for subject in subjects:
            group.create_task(publish_in_turn(sender, names, subject, confirmed[subject], stop))
        for _ in range(kills):
            await inbox_grows(inbox)
            await asyncio.to_thread(rabbitmq.kill)
            await asyncio.to_thread(rabbitmq.start)
            await asyncio.to_thread(rabbitmq.wait_ready)
        await inbox_grows(inbox)
        stop.set()
    await until(lambda: all(set(confirmed[subject]) <= set(inbox.numbers(subject)) for subject in subjects), 60)
    for subject in subjects:
        seen = first_occurrences(inbox.numbers(subject))
        assert seen == list(range(len(seen)))
    assert inbox.letters == []


async def test_everything_is_declared_and_consumed_again_after_all_connections_are_closed(
    rabbitmq: RabbitMq, started: Started, names: Names
) -> None:
    bus, inbox, heard = await started.bus(), Inbox(), Inbox()
    lines: list[bytes] = []
    await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
    await bus.listen([names.all], heard.handle)
    bus.on_broadcast(names.queue(), lines.append)
    for number in range(2):
        await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "test")
        stop = asyncio.Event()
        subject, confirmed = f"s{number}", list[int]()
        publishing = asyncio.create_task(publish_in_turn(bus, names, subject, confirmed, stop))

        def alive(subject: str = subject) -> bool:
            bus.broadcast(names.queue(), subject.encode())
            return bool(inbox.numbers(subject) and heard.numbers(subject)) and subject.encode() in lines

        await until(alive, 30)
        stop.set()
        await publishing
        await until(lambda confirmed=confirmed, subject=subject: set(confirmed) <= set(inbox.numbers(subject)), 30)
        assert first_occurrences(inbox.numbers(subject)) == confirmed


async def test_a_bus_starts_while_the_broker_is_away_and_joins_it_later(
    rabbitmq: RabbitMq, started: Started, names: Names
) -> None:
    await asyncio.to_thread(rabbitmq.kill)
    inbox = Inbox()
    try:
        async with asyncio.timeout(ANSWERS_S):
            bus = await started.bus()
            await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        assert not bus.ready()
        with pytest.raises(BusUnavailable):
            await bus.publish(names.event())
    finally:
        await asyncio.to_thread(rabbitmq.start)
        await asyncio.to_thread(rabbitmq.wait_ready)
    stop = asyncio.Event()
    publishing = asyncio.create_task(publish_in_turn(bus, names, "s", [], stop))
    await until(lambda: len(inbox.events) > 0, 30)
    stop.set()
    await publishing


@pytest.mark.usefixtures("low_memory")
async def test_a_memory_alarm_makes_publishing_fail_in_time(started: Started, names: Names) -> None:
    bus = await started.bus(publish_timeout_s=1)
    for _ in range(2):
        with pytest.raises(BusUnavailable):
            async with asyncio.timeout(ANSWERS_S):
                await bus.publish(names.event())
    assert not bus.ready()


async def test_publishing_and_consuming_go_on_after_a_memory_alarm(
    rabbitmq: RabbitMq, started: Started, names: Names
) -> None:
    bus, inbox = await started.bus(publish_timeout_s=1), Inbox()
    await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
    await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "0.00001")
    confirmed: list[int] = []
    stop = asyncio.Event()
    try:
        publishing = asyncio.create_task(publish_in_turn(bus, names, "s", confirmed, stop))
        await until(lambda: not bus.ready())
    finally:
        await asyncio.to_thread(rabbitmq.ctl, "set_vm_memory_high_watermark", "0.6")
    goal = len(confirmed) + 5
    await until(lambda: len(confirmed) >= goal, 30)
    stop.set()
    await publishing
    assert bus.ready()
    await until(lambda: set(confirmed) <= set(inbox.numbers("s")))
    assert first_occurrences(inbox.numbers("s")) == sorted(set(inbox.numbers("s")))


async def test_an_event_that_kills_its_consumers_ends_as_a_dead_letter(
    rabbitmq: RabbitMq, started: Started, names: Names
) -> None:
    bus, inbox = await started.bus(broker_delivery_limit=2), Inbox()
    async with await aio_pika.connect(rabbitmq.amqp_url) as connection:
        deadly = names.event("deadly", 0)
        process = await crash(rabbitmq, names)
        await until_published(bus, deadly)
        crashes = 0
        while await asyncio.wait_for(process.wait(), 60) == 3:
            crashes += 1
            channel = await connection.channel()
            dead = await channel.declare_queue(f"telar.{names.queue()}.dead", passive=True)
            if dead.declaration_result.message_count:
                break
            process = await crash(rabbitmq, names)
    await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
    await bus.publish(names.event("deadly", 1))
    await until(lambda: len(inbox.letters) == 1 and inbox.numbers("deadly") == [1])
    assert crashes >= 3
    assert inbox.letters[0].body == deadly.to_json()
    assert "delivery limit" in inbox.letters[0].reason


async def crash(rabbitmq: RabbitMq, names: Names) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", CRASHING, rabbitmq.amqp_url, names.queue(), names.all, stdout=asyncio.subprocess.DEVNULL
    )


async def until_published(bus: AmqpBus, event: Event) -> None:
    async with asyncio.timeout(30):
        while True:
            with suppress(Unroutable):
                await bus.publish(event)
                return
            await asyncio.sleep(0.05)
