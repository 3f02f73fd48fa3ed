"""The contract of durable queues: routing, order, attempts, dead letters, traces."""
# ruff: noqa: S101, PLR2004  # this file is made of tests, though it lives beside the library it tests

import asyncio
from collections.abc import Sequence

import pytest
from opentelemetry import trace

from libs.common.bus import DeadLetter, Delivery, TransientFailure, Unroutable
from libs.common.events import Event
from libs.common.testing.bus_contract.tools import TRACEPARENT, Buses, Inbox, Names, until


class HandlingContract:
    """What becomes of a published event."""

    async def test_an_event_arrives_as_it_was_published(self, buses: Buses, names: Names) -> None:
        bus, inbox = await buses.start(), Inbox()
        await bus.subscribe(names.queue(), [names.type()], inbox.handle, inbox.bury)
        event = names.event("vm-1", 7)
        await bus.publish(event)
        await until(lambda: len(inbox.events) == 1)
        assert inbox.events == [Event.from_json(event.to_json())]

    async def test_bindings_are_topic_patterns(self, buses: Buses, names: Names) -> None:
        bus, word, many, exact = await buses.start(), Inbox(), Inbox(), Inbox()
        await bus.subscribe(names.queue("word"), [f"{names.token}.*.deleted.v1"], word.handle, word.bury)
        await bus.subscribe(names.queue("many"), [names.all], many.handle, many.bury)
        await bus.subscribe(names.queue("exact"), [names.type("created")], exact.handle, exact.bury)
        for number, verb in enumerate(("created", "deleted", "created")):
            await bus.publish(names.event("s", number, verb))
        await until(lambda: len(many.events) == 3 and len(exact.events) == 2 and len(word.events) == 1)
        assert (many.numbers("s"), exact.numbers("s"), word.numbers("s")) == ([0, 1, 2], [0, 2], [1])

    async def test_overlapping_bindings_deliver_once(self, buses: Buses, names: Names) -> None:
        bus, inbox = await buses.start(), Inbox()
        await bus.subscribe(names.queue(), [names.all, names.type()], inbox.handle, inbox.bury)
        await bus.publish(names.event("s", 1))
        await bus.publish(names.event("s", 2))
        await until(lambda: 2 in inbox.numbers("s"))
        assert inbox.numbers("s") == [1, 2]

    async def test_each_subject_keeps_its_order_while_many_are_published_at_once(
        self, buses: Buses, names: Names
    ) -> None:
        bus, inbox = await buses.start(), Inbox()

        async def handle(event: Event) -> None:
            for _ in range(20 - event.sequence):  # the later ones would win a race
                await asyncio.sleep(0)
            await inbox.handle(event)

        await bus.subscribe(names.queue(), [names.all], handle, inbox.bury)
        subjects = [f"s{n}" for n in range(20)]
        await asyncio.gather(*(bus.publish(names.event(subject, n)) for n in range(10) for subject in subjects))
        await until(lambda: len(inbox.events) == 200)
        assert {subject: inbox.numbers(subject) for subject in subjects} == {key: list(range(10)) for key in subjects}

    async def test_a_waiting_subject_does_not_hold_the_others(self, buses: Buses, names: Names) -> None:
        bus, inbox, gate = await buses.start(), Inbox(), asyncio.Event()

        async def handle(event: Event) -> None:
            if event.subject == "slow":
                await gate.wait()
            await inbox.handle(event)

        await bus.subscribe(names.queue(), [names.all], handle, inbox.bury)
        slow = asyncio.gather(*(bus.publish(names.event("slow", n)) for n in range(2)))
        await asyncio.gather(*(bus.publish(names.event("quick", n)) for n in range(3)))
        await until(lambda: inbox.numbers("quick") == [0, 1, 2])
        assert inbox.numbers("slow") == []
        gate.set()
        await slow
        await until(lambda: inbox.numbers("slow") == [0, 1])

    async def test_a_failed_event_is_tried_again_before_its_subject_goes_on(self, buses: Buses, names: Names) -> None:
        bus, inbox = await buses.start(), Inbox(failures={"bad": [ValueError("second"), ValueError("first")]})
        await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        await asyncio.gather(*(bus.publish(names.event("bad", n)) for n in range(3)))
        await until(lambda: len(inbox.events) == 3)
        assert inbox.numbers("bad") == [0, 1, 2]
        assert inbox.attempts == 5
        assert inbox.letters == []

    async def test_poison_becomes_a_dead_letter_and_its_subject_goes_on(self, buses: Buses, names: Names) -> None:
        bus, inbox = await buses.start(), Inbox(failures={"bad": [ValueError("boom")] * 3})
        await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        poison = names.event("bad", 0)
        await bus.publish(poison)
        await bus.publish(names.event("bad", 1))
        await until(lambda: inbox.numbers("bad") == [1])
        [letter] = inbox.letters
        assert letter.body == poison.to_json()
        assert letter.queue == names.queue()
        assert letter.deliveries == 3
        assert "boom" in letter.reason

    async def test_transient_failures_do_not_count(self, buses: Buses, names: Names) -> None:
        failures: list[Exception] = [TransientFailure("database away")] * 8
        bus, inbox = await buses.start(), Inbox(failures={"s": failures})
        await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        await bus.publish(names.event("s", 1))
        await until(lambda: inbox.numbers("s") == [1])
        assert inbox.attempts == 9
        assert inbox.letters == []

    async def test_a_dead_letter_that_is_refused_is_offered_again(self, buses: Buses, names: Names) -> None:
        bus, inbox, refusals = await buses.start(), Inbox(failures={"bad": [ValueError("boom")] * 3}), [1, 2]

        async def bury(letter: DeadLetter) -> None:
            if refusals:
                refusals.pop()
                raise OSError("the table is away")
            await inbox.bury(letter)

        await bus.subscribe(names.queue(), [names.all], inbox.handle, bury)
        poison = names.event("bad", 0)
        await bus.publish(poison)
        await until(lambda: len(inbox.letters) == 1)
        assert inbox.letters[0].body == poison.to_json()

    async def test_what_is_not_an_event_becomes_a_dead_letter_as_it_came(self, buses: Buses, names: Names) -> None:
        bus, inbox = await buses.start(), Inbox()
        await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        bodies = [b"\x00\xff not json", b"[]", b'{"specversion":"0.3"}', b"", b"[" * 100_000]
        for body in bodies:
            await bus.redeliver(names.queue(), body)
        await until(lambda: len(inbox.letters) == len(bodies))
        assert [letter.body for letter in inbox.letters] == bodies
        assert inbox.attempts == 0
        assert all("malformed" in letter.reason for letter in inbox.letters)

    async def test_an_event_without_a_queue_is_refused(self, buses: Buses, names: Names) -> None:
        bus, inbox = await buses.start(), Inbox()
        await bus.subscribe(names.queue(), [names.type("created")], inbox.handle, inbox.bury)
        with pytest.raises(Unroutable):
            await bus.publish(names.event(verb="deleted"))
        await bus.publish(names.event("s", 1))
        await until(lambda: inbox.numbers("s") == [1])

    async def test_a_dead_letter_goes_back_to_its_queue_alone(self, buses: Buses, names: Names) -> None:
        bus, one, other = await buses.start(), Inbox(), Inbox()
        await bus.subscribe(names.queue("one"), [names.all], one.handle, one.bury)
        await bus.subscribe(names.queue("other"), [names.all], other.handle, other.bury)
        event = names.event("s", 1)
        await bus.redeliver(names.queue("one"), event.to_json())
        await bus.publish(names.event("s", 2))
        await until(lambda: one.numbers("s") == [1, 2] and other.numbers("s") == [2])
        with pytest.raises(Unroutable):
            await bus.redeliver(names.queue("nobody"), event.to_json())

    async def test_a_handler_runs_in_the_trace_of_its_event(self, buses: Buses, names: Names) -> None:
        bus, seen = await buses.start(), []

        async def handle(_: Event) -> None:
            seen.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")

        await bus.subscribe(names.queue(), [names.all], handle, Inbox().bury)
        await bus.publish(names.event())
        await until(lambda: bool(seen))
        assert seen == [TRACEPARENT.split("-")[1]]

    async def test_what_gathers_behind_an_event_goes_together_in_its_order(self, buses: Buses, names: Names) -> None:
        bus, inbox, gate, runs, traces = await buses.start(), Inbox(), asyncio.Event(), list[int](), set[str]()

        async def handle(event: Event) -> None:
            await gate.wait()
            await inbox.handle(event)

        async def together(deliveries: Sequence[Delivery]) -> None:
            runs.append(len(deliveries))
            for delivery in deliveries:
                span = delivery.context.run(trace.get_current_span).get_span_context()
                traces.add(f"{span.trace_id:032x}")
                await inbox.handle(delivery.event)

        await bus.subscribe(names.queue(), [names.all], handle, inbox.bury, together=together)
        published = asyncio.gather(*(bus.publish(names.event("s", n)) for n in range(40)))
        await asyncio.sleep(0.3)
        gate.set()
        await published
        await until(lambda: len(inbox.events) == 40)
        assert inbox.numbers("s") == list(range(40))
        assert max(runs) > 1
        assert traces == {TRACEPARENT.split("-")[1]}

    async def test_of_events_that_fail_together_only_the_one_that_fails_alone_is_dead(
        self, buses: Buses, names: Names
    ) -> None:
        bus, inbox, gate, tries = await buses.start(), Inbox(), asyncio.Event(), list[int]()

        async def handle(event: Event) -> None:
            await gate.wait()
            if event.sequence == 5:
                raise ValueError("boom")
            await inbox.handle(event)

        async def together(deliveries: Sequence[Delivery]) -> None:
            tries.append(len(deliveries))
            if any(delivery.event.sequence == 5 for delivery in deliveries):
                raise ValueError("boom")
            for delivery in deliveries:
                await inbox.handle(delivery.event)

        await bus.subscribe(names.queue(), [names.all], handle, inbox.bury, together=together)
        published = asyncio.gather(*(bus.publish(names.event("s", n)) for n in range(10)))
        await asyncio.sleep(0.3)
        gate.set()
        await published
        await until(lambda: len(inbox.events) == 9)
        assert inbox.numbers("s") == [0, 1, 2, 3, 4, 6, 7, 8, 9]
        [letter] = inbox.letters
        assert (Event.from_json(letter.body).sequence, letter.deliveries) == (5, 3)
        assert tries
