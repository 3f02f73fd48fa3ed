"""The contract between processes: replicas, closing, listeners, broadcasts."""
# ruff: noqa: S101, PLR2004  # this file is made of tests, though it lives beside the library it tests

import asyncio
import time

import pytest

from libs.common.bus import BusUnavailable, QueueState, TransientFailure
from libs.common.events import Event
from libs.common.testing.bus_contract.tools import Buses, Inbox, Names, until


class SharingContract:
    """What several buses at one broker do for each other."""

    async def test_replicas_share_a_queue_and_every_queue_gets_a_copy(self, buses: Buses, names: Names) -> None:
        first, second, shared, own = await buses.start(), await buses.start(), Inbox(), Inbox()
        await first.subscribe(names.queue("shared"), [names.all], shared.handle, shared.bury)
        await second.subscribe(names.queue("shared"), [names.all], shared.handle, shared.bury)
        await second.subscribe(names.queue("own"), [names.all], own.handle, own.bury)
        await asyncio.gather(*(first.publish(names.event(f"s{n % 7}", n)) for n in range(50)))
        await until(lambda: len(shared.events) == 50 and len(own.events) == 50)
        for subject in (f"s{n}" for n in range(7)):
            assert shared.numbers(subject) == sorted(shared.numbers(subject))

    async def test_how_queues_stand_is_told_to_anybody(self, buses: Buses, names: Names) -> None:
        other, first, second, inbox = await buses.start(), await buses.start(), await buses.start(), Inbox()
        queues = [names.queue("main"), names.queue("other")]
        assert await other.queues(queues) == dict.fromkeys(queues, QueueState())
        for replica in (first, second):
            await replica.subscribe(queues[0], [names.all], inbox.handle, inbox.bury)

        async def consumed(*, expected: bool) -> None:
            async with asyncio.timeout(15):  # a broker notices later, and tells nobody
                while ((await other.queues(queues))[queues[0]].consumers > 0) != expected:  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.05)

        await consumed(expected=True)
        assert (await other.queues(queues))[queues[1]] == QueueState()
        await first.close()
        await consumed(expected=True)
        await second.close()
        await consumed(expected=False)

    async def test_closing_hands_unfinished_events_to_another_replica_in_order(
        self, buses: Buses, names: Names
    ) -> None:
        sender, leaving, staying = await buses.start(), await buses.start(), await buses.start()
        stuck, inbox = asyncio.Event(), Inbox()

        async def fail(_: Event) -> None:
            stuck.set()
            raise TransientFailure("its database is away")

        await leaving.subscribe(names.queue(), [names.all], fail, inbox.bury)
        sending = asyncio.gather(*(sender.publish(names.event("s", n)) for n in range(5)))
        await asyncio.wait_for(stuck.wait(), 10)
        await staying.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        await leaving.close()
        await sending
        await until(lambda: len(inbox.events) == 5)
        assert inbox.numbers("s") == [0, 1, 2, 3, 4]

    async def test_closing_lets_a_handler_under_way_finish(self, buses: Buses, names: Names) -> None:
        sender, leaving, staying = await buses.start(), await buses.start(), await buses.start()
        under_way, gate, finished, inbox = asyncio.Event(), asyncio.Event(), [], Inbox()

        async def handle(event: Event) -> None:
            under_way.set()
            await gate.wait()
            finished.append(event.sequence)

        await leaving.subscribe(names.queue(), [names.all], handle, inbox.bury)
        sending = asyncio.gather(*(sender.publish(names.event("s", n)) for n in range(2)))
        await asyncio.wait_for(under_way.wait(), 10)
        await staying.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        closing = asyncio.create_task(leaving.close())
        await until(lambda: not leaving.ready())
        gate.set()
        await closing
        assert finished[:1] == [0]
        await sending
        await until(lambda: len(finished) + len(inbox.events) >= 2)
        assert finished + inbox.numbers("s") == [0, 1]

    async def test_closing_gives_a_stuck_handler_up_after_five_seconds(self, buses: Buses, names: Names) -> None:
        sender, leaving, staying = await buses.start(), await buses.start(), await buses.start()
        stuck, inbox = asyncio.Event(), Inbox()

        async def hang(_: Event) -> None:
            stuck.set()
            await asyncio.Event().wait()

        await leaving.subscribe(names.queue(), [names.all], hang, inbox.bury)
        sending = asyncio.create_task(sender.publish(names.event("s", 1)))
        await asyncio.wait_for(stuck.wait(), 10)
        await staying.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        began_s = time.monotonic()
        await leaving.close()
        assert time.monotonic() - began_s < 7
        await sending
        await until(lambda: inbox.numbers("s") == [1])

    async def test_subscribing_before_the_start_works(self, buses: Buses, names: Names) -> None:
        bus, inbox, heard = buses.make(), Inbox(), Inbox()
        await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        await bus.listen([names.all], heard.handle)
        await bus.start()
        await bus.publish(names.event("s", 1))
        await until(lambda: bool(inbox.events and heard.events))
        assert inbox.numbers("s") == heard.numbers("s") == [1]

    async def test_a_bus_that_is_not_open_refuses_to_publish(self, buses: Buses, names: Names) -> None:
        bus, inbox = buses.make(), Inbox()
        await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        assert not bus.ready()
        with pytest.raises(BusUnavailable):
            await bus.publish(names.event())
        await bus.start()
        await until(bus.ready)
        await bus.close()
        assert not bus.ready()
        with pytest.raises(BusUnavailable):
            await bus.publish(names.event())
        with pytest.raises(BusUnavailable):
            await bus.redeliver(names.queue(), b"{}")
        bus.broadcast("logs", b"dropped without a word")

    async def test_every_listener_gets_a_copy_until_it_ends(self, buses: Buses, names: Names) -> None:
        first, second, one, other = await buses.start(), await buses.start(), Inbox(), Inbox()
        end = await first.listen([names.all], one.handle)
        await second.listen([names.type("created")], other.handle)
        await first.publish(names.event("s", 1))
        await until(lambda: one.numbers("s") == [1] and other.numbers("s") == [1])
        await end()
        await first.publish(names.event("s", 2))
        await until(lambda: other.numbers("s") == [1, 2])
        assert one.numbers("s") == [1]

    async def test_a_listener_that_fails_gets_the_next_event(self, buses: Buses, names: Names) -> None:
        bus, heard = await buses.start(), Inbox(failures={"s": [ValueError("boom")]})
        await bus.listen([names.all], heard.handle)
        await bus.publish(names.event("s", 1))
        await bus.publish(names.event("s", 2))
        await until(lambda: bool(heard.events))
        assert heard.numbers("s") == [2]

    async def test_a_broadcast_reaches_every_process_and_the_sender(self, buses: Buses, names: Names) -> None:
        first, second = await buses.start(), await buses.start()
        own: list[bytes] = []
        far: list[bytes] = []
        wrong: list[bytes] = []
        channel = names.queue("logs")

        def fail(_: bytes) -> None:
            raise ValueError("boom")

        first.on_broadcast(channel, fail)
        first.on_broadcast(channel, own.append)
        second.on_broadcast(channel, far.append)
        second.on_broadcast(names.queue("other"), wrong.append)

        def reached() -> bool:
            first.broadcast(channel, b"line")  # at most once: until the subscriptions are there it may be dropped
            return bool(own) and bool(far)

        await until(reached)
        await asyncio.to_thread(first.broadcast, channel, b"from a thread")
        await until(lambda: b"from a thread" in own and b"from a thread" in far)
        assert set(own) == set(far) == {b"line", b"from a thread"}
        assert wrong == []
