"""The bus on RabbitMQ 3.10 or newer, through aio-pika."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from libs.common.bus.amqp.broadcaster import BroadcastReceiver, BroadcastSender
from libs.common.bus.amqp.consumer import PrivateListener, Subscription
from libs.common.bus.amqp.link import Attachment, Kept, Link
from libs.common.bus.amqp.publisher import Publisher
from libs.common.bus.amqp.survey import survey
from libs.common.bus.handling import Processor, RetryPolicy, Tracing, publishing
from libs.common.bus.metrics import BusMetrics, QueueState
from libs.common.bus.protocol import BroadcastHandler, DeadLetterHandler, Handler, HandlerTogether
from libs.common.clock import SystemClock
from libs.common.events import Event

_SETTLE_TIMEOUT_S = 5.0
_PREFETCH = 256
"""The same on all replicas of a queue (see topology)."""
_CONCURRENCY = 64


class AmqpBus:
    """Publishes on one connection and consumes on another: a memory alarm blocks publishers, never acks.

    `url` is `amqp://` or `amqps://`; TLS options may stand in its query (`cafile`, `certfile`, `keyfile`).
    `broker_delivery_limit` bounds how often a message that kills its consumers is delivered again (it is part of the
    queue's declaration: changing it asks for a new queue).
    """

    def __init__(
        self,
        url: str,
        *,
        source: str,
        retry: RetryPolicy | None = None,
        broker_delivery_limit: int = 20,
        publish_timeout_s: float = 5.0,
    ) -> None:
        self._publishing = Link(url, f"{source} publish")
        self._consuming = Link(url, f"{source} consume")
        self._publisher = Publisher(self._publishing, source=source, timeout_s=publish_timeout_s)
        self._retry = retry or RetryPolicy()
        self._broker_delivery_limit = broker_delivery_limit
        self.metrics = BusMetrics()
        self._clock = SystemClock()
        self._tracing = Tracing("rabbitmq")
        self._sender: BroadcastSender | None = None
        self._receiver = BroadcastReceiver()
        self._consumers: dict[Attachment, Kept | None] = {}
        self._kept: list[Kept] = []
        self._started = False

    async def start(self) -> None:
        self._started = True
        await asyncio.gather(self._publishing.start(), self._consuming.start())
        self._sender = BroadcastSender(self._publishing, self.metrics)
        self._kept = [self._publishing.keep(self._publisher), self._publishing.keep(self._sender)]
        self._kept.append(self._consuming.keep(self._receiver))
        for consumer in self._consumers:
            self._consumers[consumer] = self._consuming.keep(consumer)
        await self._settled(*self._kept, *(kept for kept in self._consumers.values() if kept))

    async def close(self) -> None:
        self._started = False
        consumers, self._consumers = list(self._consumers.values()), {}
        await asyncio.gather(*(kept.stop() for kept in consumers if kept))
        await asyncio.gather(*(kept.stop() for kept in self._kept))
        await asyncio.gather(self._publishing.close(), self._consuming.close())

    def ready(self) -> bool:
        return self._started and self._publisher.ready()

    async def publish(self, event: Event) -> None:
        with publishing(event, self._tracing, self.metrics):
            await self._publisher.publish(event)

    async def redeliver(self, queue: str, body: bytes) -> None:
        await self._publisher.redeliver(queue, body)

    async def queues(self, names: Sequence[str]) -> Mapping[str, QueueState]:
        return await survey(self._publishing, names)

    async def subscribe(
        self,
        queue: str,
        bindings: Sequence[str],
        handler: Handler,
        on_dead: DeadLetterHandler,
        *,
        together: HandlerTogether | None = None,
    ) -> None:
        def processor(*, insist: bool) -> Processor:
            return Processor(
                queue,
                handler,
                on_dead,
                together=together,
                retry=self._retry,
                tracing=self._tracing,
                metrics=self.metrics,
                clock=self._clock,
                insist=insist,
            )

        await self._add(
            Subscription(
                queue,
                bindings,
                processor(insist=False),
                processor(insist=True),
                prefetch=_PREFETCH,
                concurrency=_CONCURRENCY,
                broker_delivery_limit=self._broker_delivery_limit,
            )
        )

    async def listen(self, bindings: Sequence[str], handler: Handler) -> Callable[[], Awaitable[None]]:
        listener = PrivateListener(bindings, handler, self._tracing)
        await self._add(listener)

        async def end() -> None:
            kept = self._consumers.pop(listener, None)
            if kept is not None:
                await kept.stop()

        return end

    def broadcast(self, channel: str, body: bytes) -> None:
        if self._sender is None:
            self.metrics.broadcasts_dropped.inc()
        else:
            self._sender.send(channel, body)

    def on_broadcast(self, channel: str, handler: BroadcastHandler) -> None:
        self._receiver.add(channel, handler)

    async def _add(self, consumer: Attachment) -> None:
        self._consumers[consumer] = None
        if self._started:
            kept = self._consumers[consumer] = self._consuming.keep(consumer)
            await self._settled(kept)

    async def _settled(self, *kept: Kept) -> None:
        """Wait for the first declarations if the broker is there: what is published next finds its queues."""
        if not self._consuming.connected:
            return
        try:
            async with asyncio.timeout(_SETTLE_TIMEOUT_S):
                await asyncio.gather(*(one.settled.wait() for one in kept))
        except TimeoutError:
            return
