"""The event bus: one protocol, two adapters (in process, RabbitMQ), chosen by URL."""

from urllib.parse import urlsplit

from libs.common.bus.amqp import AmqpBus
from libs.common.bus.handling import RetryPolicy
from libs.common.bus.local import LocalBus
from libs.common.bus.local_broker import LocalBroker
from libs.common.bus.metrics import BusMetrics, QueueState
from libs.common.bus.protocol import (
    BroadcastHandler,
    Bus,
    BusUnavailable,
    DeadLetter,
    DeadLetterHandler,
    Delivery,
    Handler,
    HandlerTogether,
    TransientFailure,
    Unroutable,
    check_bus,
)

__all__ = [
    "AmqpBus",
    "BroadcastHandler",
    "Bus",
    "BusMetrics",
    "BusUnavailable",
    "DeadLetter",
    "DeadLetterHandler",
    "Delivery",
    "Handler",
    "HandlerTogether",
    "LocalBroker",
    "LocalBus",
    "QueueState",
    "RetryPolicy",
    "TransientFailure",
    "Unroutable",
    "check_bus",
    "create_bus",
]


def create_bus(url: str, *, source: str, broker: LocalBroker | None = None) -> Bus:
    """Make the bus that the URL names: `local:`, or RabbitMQ at `amqp://` or `amqps://`.

    `source` names the process at the broker. For `local:`, services that share a process share one `broker`: start
    them all, then open it; alone, a service needs none. Raises ValueError for any other URL (without repeating it: it
    may hold a password).
    """
    scheme = urlsplit(url).scheme
    if scheme == "local":
        return LocalBus(broker)
    if scheme in {"amqp", "amqps"}:
        return AmqpBus(url, source=source)
    raise ValueError(f"the bus URL must start with local:, amqp:// or amqps://, not {scheme or 'nothing'}:")
