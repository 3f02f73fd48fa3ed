"""What the bus counts, for Prometheus."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


@dataclass(frozen=True, slots=True)
class QueueState:
    """How a queue stands: messages that wait, processes that consume it, and messages in its dead letter queue.

    Of replicas that take turns at a queue RabbitMQ counts only the active one.
    """

    messages: int = 0
    consumers: int = 0
    dead: int = 0


class BusMetrics:
    """One process's (or embedded service's) bus figures; without a registry they have one of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        self.published = counter(
            "telar_bus_published",
            "Events handed to the bus; outcome is confirmed, unroutable or unavailable",
            ("type", "outcome"),
        )
        self.handled = counter(
            "telar_bus_handled",
            "Attempts to handle an event; outcome is handled, failed, transient or cancelled",
            ("queue", "outcome"),
        )
        queue = ("queue",)
        self.handling_seconds = Histogram(
            "telar_bus_handling_seconds", "How long one attempt took", queue, registry=self.registry
        )
        self.dead_letters = counter(
            "telar_bus_dead_letters", "Messages given up and handed to the dead letter handler", queue
        )
        self.in_flight = gauge("telar_bus_in_flight", "Messages taken and not yet settled", queue)
        self.queue_messages = gauge("telar_bus_queue_messages", "Messages that wait in a service's queue", queue)
        self.queue_consumers = gauge("telar_bus_queue_consumers", "Processes that consume a service's queue", queue)
        self.queue_dead = gauge(
            "telar_bus_queue_dead",
            "Messages that the broker gave up and no process has taken from the dead letter queue",
            queue,
        )
        self.broadcasts_dropped = counter(
            "telar_bus_broadcasts_dropped", "Broadcasts dropped: buffer full or broker away"
        )

    def show(self, states: Mapping[str, QueueState]) -> None:
        """Note how queues stand."""
        for queue, state in states.items():
            self.queue_messages.labels(queue).set(state.messages)
            self.queue_consumers.labels(queue).set(state.consumers)
            self.queue_dead.labels(queue).set(state.dead)
