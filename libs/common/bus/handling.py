"""How one message is handled, the same on every bus: span, attempts, delays, dead letter, figures."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from libs.common.bus.lanes import Abandoned, Lanes
from libs.common.bus.metrics import BusMetrics
from libs.common.bus.protocol import (
    DeadLetter,
    DeadLetterHandler,
    Delivery,
    Handler,
    HandlerTogether,
    TransientFailure,
    Unroutable,
)
from libs.common.clock import Clock
from libs.common.events import Event

_log = structlog.get_logger()
_ATTEMPTS = ("handled", "failed", "transient", "cancelled")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """After how many failures a message is given up, and how long to wait between attempts (doubling, jittered)."""

    delivery_limit: int = 5
    first_delay_s: float = 0.2
    longest_delay_s: float = 10.0

    def delay_s(self, attempt: int) -> float:
        """Time to wait after the n-th attempt (from 1): half fixed, half random, so that replicas spread out."""
        ceiling = min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(attempt - 1, 32))
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing


class Outcome(StrEnum):
    """What became of a message: handled, taken by the dead letter handler, or refused by that one too."""

    HANDLED = "handled"
    DEAD = "dead"
    REFUSED = "refused"


@dataclass(slots=True)
class Incoming:
    """A message as it came. `event` is None where `fault` says why it cannot be read.

    `redeliveries`: how often the broker has given it to a consumer before. `withdrawn`: its sender no longer waits.
    """

    body: bytes
    event: Event | None
    fault: str = ""
    redeliveries: int = 0
    withdrawn: bool = False

    @classmethod
    def read(cls, body: bytes, redeliveries: int = 0) -> Self:
        try:
            return cls(body=body, event=Event.from_json(body), redeliveries=redeliveries)
        except Exception as error:  # noqa: BLE001  # whatever parsing raises, the message must end as a dead letter
            return cls(body=body, event=None, fault=f"malformed event: {error}", redeliveries=redeliveries)

    @property
    def key(self) -> str:
        """The lane it belongs to: its subject; everything unreadable shares one."""
        return self.event.subject if self.event else ""


class Tracing:
    """Spans of what is done with an event, in the trace in which it was born."""

    def __init__(self, system: str, provider: trace.TracerProvider | None = None) -> None:
        self._system = system
        self._tracer = trace.get_tracer("telar.bus", tracer_provider=provider)
        self._propagator = TraceContextTextMapPropagator()

    def publishing(self, event: Event) -> AbstractContextManager[trace.Span]:
        """Hand the event over inside a span `<type> publish`."""
        return self._span(event, SpanKind.PRODUCER, "publish", "send", "telar.events")

    def processing(self, event: Event, destination: str) -> AbstractContextManager[trace.Span]:
        """Run the handler inside a span `<type> process`."""
        return self._span(event, SpanKind.CONSUMER, "process", "process", destination)

    def _span(
        self, event: Event, kind: SpanKind, name: str, operation: str, destination: str
    ) -> AbstractContextManager[trace.Span]:
        """A span by OpenTelemetry's semantic conventions for messaging."""
        born = self._propagator.extract({"traceparent": event.traceparent}) if event.traceparent else Context()
        return self._tracer.start_as_current_span(
            f"{event.type} {name}",
            context=born,
            kind=kind,
            attributes={
                "messaging.system": self._system,
                "messaging.operation.type": operation,
                "messaging.operation.name": name,
                "messaging.destination.name": destination,
                "messaging.message.id": event.id,
            },
        )


@contextmanager
def publishing(event: Event, tracing: Tracing, metrics: BusMetrics) -> Iterator[None]:
    """Hand the event over in a span, and count what became of it."""
    outcome = "unavailable"
    try:
        with tracing.publishing(event):
            yield
        outcome = "confirmed"
    except Unroutable:
        outcome = "unroutable"
        raise
    finally:
        metrics.published.labels(event.type, outcome).inc()


class Processor:
    """Takes one queue's messages through its handler until each is handled or dead.

    `insist`: when the dead letter handler fails, try it again without end (there is nowhere else to put the message)
    instead of answering REFUSED.
    """

    def __init__(
        self,
        queue: str,
        handler: Handler,
        on_dead: DeadLetterHandler,
        *,
        together: HandlerTogether | None,
        retry: RetryPolicy,
        tracing: Tracing,
        metrics: BusMetrics,
        clock: Clock,
        insist: bool,
    ) -> None:
        self._queue = queue
        self._handler = handler
        self._on_dead = on_dead
        self._together = together
        self._retry = retry
        self._tracing = tracing
        self._clock = clock
        self._insist = insist
        self._in_flight = metrics.in_flight.labels(queue)
        self._dead_letters = metrics.dead_letters.labels(queue)
        self._seconds = metrics.handling_seconds.labels(queue)
        self._attempts = {name: metrics.handled.labels(queue, name) for name in _ATTEMPTS}

    async def process_together(self, run: Sequence[Incoming], lanes: Lanes[Any]) -> bool:
        """Handle what came for one subject at once, all or none; raises Abandoned as `process` does."""
        events = [incoming.event for incoming in run if incoming.event is not None and not incoming.withdrawn]
        if self._together is None or len(events) < len(run):
            return False
        async with lanes.permit():
            started_s = time.perf_counter()
            self._in_flight.inc(len(events))
            try:
                with ExitStack() as spans:
                    deliveries = []
                    for event in events:
                        spans.enter_context(self._tracing.processing(event, self._queue))
                        deliveries.append(Delivery(event, copy_context()))
                    await self._together(deliveries)
            except Exception as fault:  # noqa: BLE001  # each is tried by itself, where its own failure counts
                reason = f"{type(fault).__name__}: {fault}"
                _log.info("events_go_one_by_one", queue=self._queue, subject=events[0].subject, reason=reason)
                return False
            finally:
                self._in_flight.dec(len(events))
        self._attempts["handled"].inc(len(events))
        for _ in events:
            self._seconds.observe(time.perf_counter() - started_s)
        return True

    async def process(self, incoming: Incoming, lanes: Lanes[Any]) -> Outcome:
        """Handle, retry in place, or bury. Raises Abandoned where it was left unfinished."""
        with self._in_flight.track_inprogress():
            return await self._process(incoming, lanes)

    async def _process(self, incoming: Incoming, lanes: Lanes[Any]) -> Outcome:
        event = incoming.event
        if event is None:
            return await self.bury(incoming.body, incoming.fault, incoming.redeliveries + 1, lanes)
        attempts = failures = 0
        while True:
            async with lanes.permit():
                fault = await self._attempt(event)
            if fault is None:
                return Outcome.HANDLED
            attempts += 1
            reason = f"{type(fault).__name__}: {fault}"
            transient = isinstance(fault, TransientFailure)
            failures += not transient
            _log.warning(
                "event_handling_failed",
                queue=self._queue,
                event_id=event.id,
                event_type=event.type,
                subject=event.subject,
                attempt=attempts,
                transient=transient,
                reason=reason,
                exc_info=fault if not transient else None,
            )
            if failures >= self._retry.delivery_limit:
                return await self.bury(incoming.body, reason, incoming.redeliveries + attempts, lanes)
            await lanes.pause(self._retry.delay_s(attempts))
            if incoming.withdrawn:
                raise Abandoned

    async def _attempt(self, event: Event) -> Exception | None:
        started_s = time.perf_counter()
        outcome = "cancelled"
        try:
            with self._tracing.processing(event, self._queue):
                await self._handler(event)
            outcome = "handled"
        except TransientFailure as fault:
            outcome = "transient"
            return fault
        except Exception as fault:  # noqa: BLE001  # whatever a handler raises counts as its failure; it is logged above
            outcome = "failed"
            return fault
        finally:
            self._attempts[outcome].inc()
            self._seconds.observe(time.perf_counter() - started_s)
        return None

    async def bury(self, body: bytes, reason: str, deliveries: int, lanes: Lanes[Any]) -> Outcome:
        """Hand the message to the dead letter handler."""
        letter = DeadLetter(self._queue, body, reason, deliveries, self._clock.now())
        attempts = 0
        while True:
            try:
                await self._on_dead(letter)
            except Exception:  # noqa: BLE001  # its owner's failure of whatever kind must not lose the letter
                _log.exception("dead_letter_refused", queue=self._queue, reason=reason)
            else:
                self._dead_letters.inc()
                return Outcome.DEAD
            if not self._insist:
                return Outcome.REFUSED
            attempts += 1
            await lanes.pause(self._retry.delay_s(attempts))
