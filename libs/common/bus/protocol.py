"""The contract of the event bus; both adapters pass `libs.common.testing.bus_contract`."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from libs.common.bus.metrics import BusMetrics, QueueState
from libs.common.errors import Unavailable
from libs.common.events import Event


class BusUnavailable(Unavailable):
    slug = "bus-unavailable"
    title = "The event bus does not answer"


class Unroutable(Unavailable):
    """No queue was bound for the event, so that nobody would ever have seen it; publish it again later.

    As in AMQP one bound queue is enough, a listener's too: it does not tell that every consumer has subscribed.
    """

    slug = "bus-unroutable"
    title = "Nobody listens to this event yet"


class TransientFailure(Exception):
    """A handler could not do its work now (its database is away): it is tried again without counting against it."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be handled: `body` as it came (it may not even be a CloudEvent).

    `reason`: the last failure (`ValueError: …`), or why the broker gave it up. `deliveries`: how often it was given to
    a handler or taken by a process that went away. The same letter may come twice.
    """

    queue: str
    body: bytes
    reason: str
    deliveries: int
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event, and the context (span, log fields) in which it is to be handled."""

    event: Event
    context: Context


Handler = Callable[[Event], Awaitable[None]]
HandlerTogether = Callable[[Sequence[Delivery]], Awaitable[None]]
"""Handles events of one subject in their order, all or none: when it raises, nothing of it has happened."""
DeadLetterHandler = Callable[[DeadLetter], Awaitable[None]]
BroadcastHandler = Callable[[bytes], None]


class Bus(Protocol):
    """Topic bus. Bindings are AMQP topic patterns (`*` one word, `#` any number) on the event's type.

    `subscribe` and `listen` may be called before or after `start`; after a broker's absence all are re-established.
    """

    @property
    def metrics(self) -> BusMetrics:
        """What it counts."""
        ...

    async def start(self) -> None:
        """Connect. Returns at once if the broker is away (it goes on trying); `ready()` tells."""

    async def close(self) -> None:
        """Stop taking messages, let the handlers under way finish (at most 5 s), disconnect. Unhandled ones go back."""

    def ready(self) -> bool:
        """Whether publishing is expected to work now."""
        ...

    async def publish(self, event: Event) -> None:
        """Hand the event over; returns only when it can no longer be lost (broker's confirm; in process: handled).

        Calls may overlap: events are handed over in the order of the calls. To keep a subject's order, an event that
        was refused must be published again before the later ones of its subject.

        Raises BusUnavailable (no confirm within the time-out; the event may or may not have been taken) or Unroutable.
        """

    async def subscribe(
        self,
        queue: str,
        bindings: Sequence[str],
        handler: Handler,
        on_dead: DeadLetterHandler,
        *,
        together: HandlerTogether | None = None,
    ) -> None:
        """Consume a durable queue that all replicas share: at least once, in order per subject, subjects in parallel.

        A handler that fails is tried again with growing delays while its subject waits and the others flow; after
        `delivery_limit` failures, or if the message cannot be read, it goes to `on_dead` exactly as it came and the
        subject's next event flows. TransientFailure is tried again without limit. Failures are counted by the process
        that handles the event; a message that takes its process down with it is given up after a limit of the broker.
        All replicas of a queue subscribe alike. Bindings add up: one that is left out later stays bound in the broker,
        so that a handler must pass over types it does not know.

        `together` gets what gathered behind an event of its subject, a few at a time; when it fails, they go to
        `handler` one by one, and only these failures count.
        """

    async def listen(self, bindings: Sequence[str], handler: Handler) -> Callable[[], Awaitable[None]]:
        """Get an own copy of every matching event published from now on, for this process alone (no durability).

        Returns an awaitable function that ends it. A handler's failure is logged and the event dropped.
        """
        ...

    async def redeliver(self, queue: str, body: bytes) -> None:
        """Put a message (a dead letter) into one queue again, as if it had just been published to that queue alone.

        Raises BusUnavailable, or Unroutable where there is no such queue.
        """

    async def queues(self, names: Sequence[str]) -> Mapping[str, QueueState]:
        """How queues stand, whoever consumes them; one that nobody ever subscribed to is empty and unconsumed.

        Raises BusUnavailable.
        """
        ...

    def broadcast(self, channel: str, body: bytes) -> None:
        """Send bytes to every process's `on_broadcast` of that channel: at most once, never blocks, may be dropped.

        For log lines and cache hints, never for facts. May be called from any thread, and logs nothing itself.
        """

    def on_broadcast(self, channel: str, handler: BroadcastHandler) -> None:
        """Call the handler for each broadcast on the channel (own ones included)."""


async def check_bus(bus: Bus) -> None:
    """The readiness check of whoever needs the bus; raises BusUnavailable."""
    if not bus.ready():
        raise BusUnavailable
