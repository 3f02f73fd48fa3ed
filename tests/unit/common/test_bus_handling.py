from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry

from libs.common.bus import BusMetrics, RetryPolicy, TransientFailure
from libs.common.bus.handling import Incoming, Outcome, Processor, Tracing
from libs.common.bus.lanes import Lanes
from libs.common.clock import SystemClock
from libs.common.events import Event
from libs.common.testing.bus_contract import RETRY, TRACEPARENT, Inbox, Names


async def process(inbox: Inbox, event: Event, *, tracing: Tracing, metrics: BusMetrics) -> Outcome:
    processor = Processor(
        "q",
        inbox.handle,
        inbox.bury,
        together=None,
        retry=RETRY,
        tracing=tracing,
        metrics=metrics,
        clock=SystemClock(),
        insist=False,
    )
    return await processor.process(Incoming.read(event.to_json()), Lanes(1, processor.process))


async def test_each_attempt_is_a_consumer_span_in_the_trace_of_the_event() -> None:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    names = Names()
    inbox = Inbox(failures={"s": [ValueError("boom")]})
    outcome = await process(inbox, names.event("s"), tracing=Tracing("rabbitmq", provider), metrics=BusMetrics())
    assert outcome is Outcome.HANDLED
    failed, handled = exporter.get_finished_spans()
    assert [span.name for span in (failed, handled)] == [f"{names.type()} process"] * 2
    assert (failed.status.is_ok, handled.status.is_ok) == (False, True)
    for span in (failed, handled):
        assert span.kind is SpanKind.CONSUMER
        assert span.parent is not None
        assert f"{span.context.trace_id:032x}-{span.parent.span_id:016x}" in TRACEPARENT
        assert dict(span.attributes or {}) | {"messaging.message.id": ""} == {
            "messaging.system": "rabbitmq",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": "q",
            "messaging.message.id": "",
        }


async def test_attempts_and_dead_letters_are_counted() -> None:
    registry = CollectorRegistry()
    metrics, names = BusMetrics(registry), Names()
    faults: list[Exception] = [ValueError("c"), ValueError("b"), TransientFailure("away"), ValueError("a")]
    inbox = Inbox(failures={"bad": faults})
    assert await process(inbox, names.event("bad"), tracing=Tracing("x"), metrics=metrics) is Outcome.DEAD
    assert await process(inbox, names.event("good"), tracing=Tracing("x"), metrics=metrics) is Outcome.HANDLED

    def count(outcome: str) -> float | None:
        return registry.get_sample_value("telar_bus_handled_total", {"queue": "q", "outcome": outcome})

    assert (count("handled"), count("failed"), count("transient")) == (1, 3, 1)
    assert registry.get_sample_value("telar_bus_dead_letters_total", {"queue": "q"}) == 1
    assert registry.get_sample_value("telar_bus_handling_seconds_count", {"queue": "q"}) == 5
    assert inbox.letters[0].deliveries == 4


def test_delays_grow_to_a_ceiling_and_differ() -> None:
    policy = RetryPolicy(first_delay_s=0.2, longest_delay_s=10)
    for attempt, ceiling_s in ((1, 0.2), (2, 0.4), (5, 3.2), (7, 10), (10_000, 10)):
        delays_s = [policy.delay_s(attempt) for _ in range(50)]
        assert all(ceiling_s / 2 <= delay_s <= ceiling_s for delay_s in delays_s)
        assert len(set(delays_s)) > 1
