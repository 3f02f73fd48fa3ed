"""How queues stand, asked of the broker itself: a service that is down cannot tell."""

import asyncio
from collections.abc import Mapping, Sequence

from aio_pika.exceptions import ChannelNotFoundEntity

from libs.common.bus.amqp.link import BrokerLost, Link, broker_faults, close_quietly
from libs.common.bus.amqp.topology import dead_queue_name, queue_name
from libs.common.bus.metrics import QueueState
from libs.common.bus.protocol import BusUnavailable

_TIMEOUT_S = 5.0


async def survey(link: Link, names: Sequence[str]) -> Mapping[str, QueueState]:
    """The state of each service's queues; raises BusUnavailable."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            found = {}
            for name in names:
                messages, consumers = await _counted(link, queue_name(name))
                dead, _ = await _counted(link, dead_queue_name(name))
                found[name] = QueueState(messages, consumers, dead)
            return found
    except (BrokerLost, TimeoutError) as error:
        raise BusUnavailable("the broker did not tell how its queues stand") from error


async def _counted(link: Link, queue: str) -> tuple[int, int]:
    """Messages that are ready and consumers of a queue. A missing one costs its channel (AMQP 0-9-1, queue.declare)."""
    channel = await link.channel()
    try:
        with broker_faults():
            result = (await channel.declare_queue(queue, passive=True)).declaration_result
            return result.message_count or 0, result.consumer_count or 0
    except BrokerLost as error:
        if isinstance(error.__cause__, ChannelNotFoundEntity):
            return 0, 0
        raise
    finally:
        await close_quietly(channel)
