"""Broadcasts: bytes to every process, at most once, never waiting for anybody."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Sequence
from contextlib import suppress

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue

from libs.common.bus.amqp.consumer import lost_or_cancelled
from libs.common.bus.amqp.link import BrokerLost, Link, asked_to_stop, broker_faults, close_quietly
from libs.common.bus.amqp.topology import BROADCAST_EXCHANGE, declare_broadcast, declare_private
from libs.common.bus.metrics import BusMetrics
from libs.common.bus.protocol import BroadcastHandler
from libs.common.tasks import cancel

_log = structlog.get_logger()
_BUFFER = 1_000


class BroadcastSender:
    """A bounded buffer and the task that empties it into the broker, without confirms."""

    name = "broadcast sender"

    def __init__(self, link: Link, metrics: BusMetrics) -> None:
        self._link = link
        self._dropped = metrics.broadcasts_dropped
        self._buffer: deque[tuple[str, bytes]] = deque()
        self._filled = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._channel: AbstractChannel | None = None
        self._task: asyncio.Task[None] | None = None

    def send(self, channel: str, body: bytes) -> None:
        """Buffer it, or drop it when the broker is away or slow. May be called from any thread; logs nothing.

        (Log lines are broadcast: a line about a line would never end.)
        """
        if self._task is None or len(self._buffer) >= _BUFFER:
            self._dropped.inc()
            return
        self._buffer.append((channel, body))
        with suppress(RuntimeError):  # the loop is closing
            self._loop.call_soon_threadsafe(self._filled.set)

    async def attach(self, connection: AbstractConnection) -> Awaitable[object]:
        self._channel = channel = await connection.channel(publisher_confirms=False)
        await declare_broadcast(channel)
        self._task = asyncio.create_task(self._drain(channel), name="bus-broadcast")
        return channel.closed()

    async def detach(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await cancel(task)
        self._dropped.inc(len(self._buffer))
        self._buffer.clear()
        channel, self._channel = self._channel, None
        await close_quietly(channel)

    async def _drain(self, channel: AbstractChannel) -> None:
        exchange = await channel.get_exchange(BROADCAST_EXCHANGE, ensure=False)
        with suppress(BrokerLost), broker_faults():
            while not asked_to_stop():
                await self._filled.wait()
                self._filled.clear()
                while self._buffer:
                    await self._link.unblocked()
                    name, body = self._buffer.popleft()
                    message = Message(body, delivery_mode=DeliveryMode.NOT_PERSISTENT)
                    await exchange.publish(message, name, mandatory=False)


class BroadcastReceiver:
    """Own copies of the broadcasts on the channels it listens to."""

    name = "broadcast receiver"

    def __init__(self) -> None:
        self._handlers: defaultdict[str, list[BroadcastHandler]] = defaultdict(list)
        self._channel: AbstractChannel | None = None
        self._queue: AbstractQueue | None = None
        self._bound: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, channel: str, handler: BroadcastHandler) -> None:
        self._handlers[channel].append(handler)
        if self._queue is not None:
            task = asyncio.create_task(self._bind(self._queue, [channel]), name="bus-broadcast-bind")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def attach(self, connection: AbstractConnection) -> Awaitable[object]:
        self._channel = channel = await connection.channel(publisher_confirms=False)
        queue = await declare_private(channel, await declare_broadcast(channel), ())
        lost = await lost_or_cancelled(channel)
        await queue.consume(self._on_message, no_ack=True)
        self._queue = queue
        await self._bind(queue, list(self._handlers))
        return lost

    async def detach(self) -> None:
        channel, self._channel, self._queue = self._channel, None, None
        for task in tuple(self._tasks):
            task.cancel()
        await close_quietly(channel)

    async def _bind(self, queue: AbstractQueue, channels: Sequence[str]) -> None:
        with suppress(BrokerLost), broker_faults():
            for channel in channels:
                await queue.bind(BROADCAST_EXCHANGE, channel)

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        for handler in tuple(self._handlers.get(message.routing_key or "", ())):
            try:
                handler(message.body)
            except Exception:  # noqa: BLE001  # a handler's failure is its own
                _log.exception("broadcast_handler_failed", channel=message.routing_key)
