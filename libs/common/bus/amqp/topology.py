"""What Telar declares in RabbitMQ: exchanges, queues and their arguments.

Order per subject rests on three facts of quorum queues (https://www.rabbitmq.com/docs/quorum-queues,
https://www.rabbitmq.com/docs/consumers#single-active-consumer):
one consumer is active at a time; a closed channel's unsettled messages return in the order in which they were
delivered and come before all others; and, as every consumer has the same prefetch, they all go to the next consumer
at once. So a consumer never requeues a single message (those already prefetched would overtake it) and never cancels
while it has unsettled ones (the next consumer would start beside it): it closes its channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractQueue
from pamqp.common import Arguments

EVENTS_EXCHANGE = "telar.events"
DEAD_EXCHANGE = "telar.dead"
BROADCAST_EXCHANGE = "telar.broadcast"
LISTENER_MAX_LENGTH = 10_000
# RabbitMQ 4 drops a message after 20 deliveries where no limit is given; a dead letter must never be dropped.
_NO_LIMIT = 1_000_000_000


def queue_name(queue: str) -> str:
    return f"telar.{queue}"


def dead_queue_name(queue: str) -> str:
    return f"telar.{queue}.dead"


@dataclass(frozen=True, slots=True)
class Queues:
    """A subscription's two queues, declared."""

    main: AbstractQueue
    dead: AbstractQueue


async def declare_events(channel: AbstractChannel) -> AbstractExchange:
    return await channel.declare_exchange(EVENTS_EXCHANGE, ExchangeType.TOPIC, durable=True)


async def declare_broadcast(channel: AbstractChannel) -> AbstractExchange:
    return await channel.declare_exchange(BROADCAST_EXCHANGE, ExchangeType.TOPIC, durable=True)


async def declare_subscription(
    channel: AbstractChannel, queue: str, bindings: Sequence[str], broker_delivery_limit: int
) -> Queues:
    """Declare the queue, its dead letter queue and the bindings; the dead letter queue first, so that it can't miss.

    Dead lettering is at least once (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering), which asks for
    `reject-publish`; there is no length limit, so nothing is ever rejected for it.
    """
    events = await declare_events(channel)
    letters = await channel.declare_exchange(DEAD_EXCHANGE, ExchangeType.DIRECT, durable=True)
    dead = await channel.declare_queue(
        dead_queue_name(queue), durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": _NO_LIMIT}
    )
    await dead.bind(letters, queue_name(queue))
    arguments: Arguments = {
        "x-queue-type": "quorum",
        "x-single-active-consumer": True,
        "x-delivery-limit": broker_delivery_limit,
        "x-dead-letter-exchange": DEAD_EXCHANGE,
        "x-dead-letter-routing-key": queue_name(queue),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    main = await channel.declare_queue(queue_name(queue), durable=True, arguments=arguments)
    for binding in bindings:
        await main.bind(events, binding)
    return Queues(main, dead)


async def declare_private(
    channel: AbstractChannel, exchange: AbstractExchange, bindings: Sequence[str]
) -> AbstractQueue:
    """Declare a queue that only this connection sees and that ends with it; the oldest are dropped when it is full."""
    queue = await channel.declare_queue(
        exclusive=True,
        auto_delete=True,
        arguments={"x-max-length": LISTENER_MAX_LENGTH, "x-overflow": "drop-head"},
    )
    for binding in bindings:
        await queue.bind(exchange, binding)
    return queue
