"""Consuming: a durable queue with its dead letters, and private copies for listeners."""

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from libs.common.bus.amqp.link import BrokerLost, broker_faults, close_quietly
from libs.common.bus.amqp.topology import declare_events, declare_private, declare_subscription
from libs.common.bus.handling import Incoming, Outcome, Processor, Tracing
from libs.common.bus.lanes import Lanes
from libs.common.bus.protocol import Handler

_log = structlog.get_logger()
_CLOSE_GRACE_S = 5.0
_DEAD_PREFETCH = 16
_LISTENER_PREFETCH = 256

_Taken = tuple[AbstractIncomingMessage, Incoming]


async def lost_or_cancelled(channel: AbstractChannel) -> Awaitable[object]:
    """What completes when the channel closes or the broker cancels its consumer (its queue was deleted)."""
    lost: asyncio.Future[Any] = asyncio.ensure_future(channel.closed())
    ended = asyncio.get_running_loop().create_future()

    def end(_: object) -> None:
        if not ended.done():
            ended.set_result(None)

    lost.add_done_callback(end)
    underlay = await channel.get_underlay_channel()
    underlay.on_consumer_cancel_callbacks.add(end)
    return ended


async def settle(message: AbstractIncomingMessage, *, refused: bool = False) -> None:
    """Ack or reject; where the channel is gone the broker delivers the message again, which is the contract.

    Nothing waits until it is written, so that what is settled together is written together.
    """
    tag = message.delivery_tag or 0
    with suppress(BrokerLost), broker_faults():
        if refused:
            await message.channel.basic_reject(tag, requeue=False, wait=False)
        else:
            await message.channel.basic_ack(tag, wait=False)


class Subscription:
    """A durable queue: lanes per subject, in-place retries, dead letters drained beside it."""

    def __init__(
        self,
        queue: str,
        bindings: Sequence[str],
        processor: Processor,
        burier: Processor,
        *,
        prefetch: int,
        concurrency: int,
        broker_delivery_limit: int,
    ) -> None:
        self.name = f"queue {queue}"
        self._queue = queue
        self._bindings = tuple(bindings)
        self._processor = processor
        self._burier = burier
        self._prefetch = prefetch
        self._concurrency = concurrency
        self._broker_delivery_limit = broker_delivery_limit
        self._channel: AbstractChannel | None = None
        self._lanes, self._dead_lanes = self._new_lanes()

    async def attach(self, connection: AbstractConnection) -> Awaitable[object]:
        self._lanes, self._dead_lanes = self._new_lanes()
        self._channel = channel = await connection.channel(publisher_confirms=False)
        queues = await declare_subscription(channel, self._queue, self._bindings, self._broker_delivery_limit)
        lost = await lost_or_cancelled(channel)
        await channel.set_qos(_DEAD_PREFETCH)
        await queues.dead.consume(partial(self._on_dead_letter, self._dead_lanes))
        await channel.set_qos(self._prefetch)
        await queues.main.consume(partial(self._on_message, self._lanes))
        return lost

    async def detach(self) -> None:
        """Let handlers under way finish and ack, then close the channel: the rest goes back in its order."""
        await asyncio.gather(self._lanes.stop(_CLOSE_GRACE_S), self._dead_lanes.stop(_CLOSE_GRACE_S))
        channel, self._channel = self._channel, None
        await close_quietly(channel)

    def _new_lanes(self) -> tuple[Lanes[_Taken], Lanes[AbstractIncomingMessage]]:
        return Lanes(self._concurrency, self._handle, self._handle_together), Lanes(1, self._bury)

    async def _on_message(self, lanes: Lanes[_Taken], message: AbstractIncomingMessage) -> None:
        incoming = Incoming.read(message.body, redeliveries=_delivery_count(message))
        lanes.add(incoming.key, (message, incoming))

    async def _handle(self, taken: _Taken, lanes: Lanes[_Taken]) -> None:
        message, incoming = taken
        outcome = await self._processor.process(incoming, lanes)
        # What even the dead letter handler refuses goes to the broker's dead letter queue, and so frees its subject.
        await settle(message, refused=outcome is Outcome.REFUSED)

    async def _handle_together(self, run: Sequence[_Taken], lanes: Lanes[_Taken]) -> bool:
        if not await self._processor.process_together([incoming for _, incoming in run], lanes):
            return False
        for message, _ in run:
            await settle(message)
        return True

    async def _on_dead_letter(self, lanes: Lanes[AbstractIncomingMessage], message: AbstractIncomingMessage) -> None:
        lanes.add("", message)

    async def _bury(self, message: AbstractIncomingMessage, lanes: Lanes[AbstractIncomingMessage]) -> None:
        reason, deliveries = _why_dead(message)
        await self._burier.bury(message.body, reason, deliveries, lanes)
        await settle(message)


class PrivateListener:
    """A process's own copy of matching events, handled in order; gone when the process or the connection is."""

    name = "listener"

    def __init__(self, bindings: Sequence[str], handler: Handler, tracing: Tracing) -> None:
        self._bindings = tuple(bindings)
        self._handler = handler
        self._tracing = tracing
        self._channel: AbstractChannel | None = None
        self._lanes = Lanes(1, self._handle)

    async def attach(self, connection: AbstractConnection) -> Awaitable[object]:
        self._lanes = lanes = Lanes(1, self._handle)
        self._channel = channel = await connection.channel(publisher_confirms=False)
        queue = await declare_private(channel, await declare_events(channel), self._bindings)
        lost = await lost_or_cancelled(channel)
        await channel.set_qos(_LISTENER_PREFETCH)

        async def on_message(message: AbstractIncomingMessage) -> None:
            lanes.add("", message)

        await queue.consume(on_message)
        return lost

    async def detach(self) -> None:
        await self._lanes.stop(_CLOSE_GRACE_S)
        channel, self._channel = self._channel, None
        await close_quietly(channel)

    async def _handle(self, message: AbstractIncomingMessage, _: Lanes[AbstractIncomingMessage]) -> None:
        event = Incoming.read(message.body).event
        try:
            if event is not None:
                with self._tracing.processing(event, "listener"):
                    await self._handler(event)
        except Exception:  # noqa: BLE001  # a listener's failure is its own
            _log.exception("event_listener_failed", message_id=message.message_id)
        await settle(message)


def _delivery_count(message: AbstractIncomingMessage) -> int:
    count = message.headers.get("x-delivery-count", 0)
    return count if isinstance(count, int) else 0


def _why_dead(message: AbstractIncomingMessage) -> tuple[str, int]:
    """Read the broker's account: why it gave the message up and how often it had delivered it."""
    first: Any = message.headers.get("x-death") or [{}]
    reason = first[0].get("reason", "unknown") if isinstance(first, list) and isinstance(first[0], dict) else "unknown"
    deliveries = max(_delivery_count(message), 1)
    if reason == "delivery_limit":
        return "delivery limit: its consumers went away every time before they settled it", deliveries
    if reason == "rejected":
        return "handling failed, and so did taking it as a dead letter; the log tells why", deliveries
    return f"dead lettered by the broker: {reason}", deliveries
