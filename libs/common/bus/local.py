"""The bus inside one process: a service's view of the queues that all services of the process share."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import structlog

from libs.common.bus.handling import Processor, RetryPolicy, Tracing, publishing
from libs.common.bus.local_broker import Consumer, Listener, LocalBroker
from libs.common.bus.metrics import BusMetrics, QueueState
from libs.common.bus.protocol import (
    BroadcastHandler,
    BusUnavailable,
    DeadLetterHandler,
    Handler,
    HandlerTogether,
    Unroutable,
)
from libs.common.clock import SystemClock
from libs.common.events import Event

_log = structlog.get_logger()


class LocalBus:
    """A service's view of a LocalBroker. Without a shared one it has its own, open from `start` to `close`.

    `publish` returns when every queue has handled the event or given it up, because no broker keeps it meanwhile;
    after `publish_timeout_s` it raises BusUnavailable and takes the event (and those behind it) out of the queues.
    """

    def __init__(
        self,
        broker: LocalBroker | None = None,
        *,
        retry: RetryPolicy | None = None,
        concurrency: int = 64,
        publish_timeout_s: float = 30.0,
    ) -> None:
        self._broker = broker or LocalBroker()
        self._owns_broker = broker is None
        self._retry = retry or RetryPolicy()
        self._concurrency = concurrency
        self._publish_timeout_s = publish_timeout_s
        self.metrics = BusMetrics()
        self._clock = SystemClock()
        self._tracing = Tracing("telar.local")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._joins: list[Callable[[], None]] = []
        self._leaves: list[Callable[[], Awaitable[None]]] = []
        self._heard: list[tuple[str, BroadcastHandler]] = []

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        joins, self._joins = self._joins, []
        for join in joins:
            join()
        if self._owns_broker:
            self._broker.open()

    async def close(self) -> None:
        if self._owns_broker:
            self._broker.close()
        self._loop = None
        for channel, handler in self._heard:
            self._broker.broadcast_handlers[channel].remove(handler)
        self._heard.clear()
        leaves, self._leaves = self._leaves, []
        await asyncio.gather(*(leave() for leave in leaves))

    def ready(self) -> bool:
        return self._loop is not None and self._broker.is_open

    async def publish(self, event: Event) -> None:
        with publishing(event, self._tracing, self.metrics):
            self._require_started()
            await self._broker.route(event, self._publish_timeout_s)

    async def redeliver(self, queue: str, body: bytes) -> None:
        self._require_started()
        known = self._broker.queues.get(queue)
        if known is None:
            raise Unroutable(f"there is no queue {queue}")
        await self._broker.deliver(body, [known], self._publish_timeout_s)

    async def queues(self, names: Sequence[str]) -> Mapping[str, QueueState]:
        self._require_started()
        known = self._broker.queues
        return {name: known[name].state if name in known else QueueState() for name in names}

    async def subscribe(
        self,
        queue: str,
        bindings: Sequence[str],
        handler: Handler,
        on_dead: DeadLetterHandler,
        *,
        together: HandlerTogether | None = None,
    ) -> None:
        processor = Processor(
            queue,
            handler,
            on_dead,
            together=together,
            retry=self._retry,
            tracing=self._tracing,
            metrics=self.metrics,
            clock=self._clock,
            insist=True,
        )

        def join() -> None:
            consumer = Consumer(processor, self._concurrency)
            shared = self._broker.queue(queue)
            shared.bindings.update(bindings)
            shared.join(consumer)
            self._leaves.append(partial(shared.leave, consumer))

        self._when_started(join)

    async def listen(self, bindings: Sequence[str], handler: Handler) -> Callable[[], Awaitable[None]]:
        ended = False
        listener: Listener | None = None

        def join() -> None:
            nonlocal listener
            if not ended:
                listener = Listener(bindings, handler, self._tracing)
                self._broker.listeners.add(listener)
                self._leaves.append(end)

        async def end() -> None:
            nonlocal ended
            ended = True
            if listener is not None:
                self._broker.listeners.discard(listener)
                await listener.stop()

        self._when_started(join)
        return end

    def broadcast(self, channel: str, body: bytes) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            self.metrics.broadcasts_dropped.inc()
            return
        for handler in tuple(self._broker.broadcast_handlers.get(channel, ())):
            # Log lines are broadcast from worker threads too.
            loop.call_soon_threadsafe(_call_safely, channel, handler, body)

    def on_broadcast(self, channel: str, handler: BroadcastHandler) -> None:
        self._broker.broadcast_handlers[channel].append(handler)
        self._heard.append((channel, handler))

    def _when_started(self, join: Callable[[], None]) -> None:
        if self._loop is None:
            self._joins.append(join)
        else:
            join()

    def _require_started(self) -> None:
        if self._loop is None:
            raise BusUnavailable("the bus is not started")


def _call_safely(channel: str, handler: BroadcastHandler, body: bytes) -> None:
    try:
        handler(body)
    except Exception:  # noqa: BLE001  # a listener's failure is its own
        _log.exception("broadcast_handler_failed", channel=channel)
