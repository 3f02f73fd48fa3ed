"""Queues inside one process: the far end that LocalBus talks to where there is no RabbitMQ."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from libs.common.bus.handling import Incoming, Outcome, Processor, Tracing
from libs.common.bus.lanes import Lanes
from libs.common.bus.metrics import QueueState
from libs.common.bus.protocol import BroadcastHandler, BusUnavailable, Handler, Unroutable
from libs.common.bus.topics import any_matches
from libs.common.events import Event

_log = structlog.get_logger()
_CLOSE_GRACE_S = 5.0
_LISTENER_BUFFER = 10_000


@dataclass(slots=True, eq=False)
class _Entry:
    """A message in a queue until `done`: the only durable copy is its sender's, who waits for that."""

    incoming: Incoming
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


_Taken = tuple[_Entry, Callable[[_Entry], None]]
"""An entry and whom to tell that it is settled."""


class Consumer:
    """One service's handler on a queue."""

    def __init__(self, processor: Processor, concurrency: int) -> None:
        self.lanes = Lanes[_Taken](concurrency, self._work, self._work_together)
        self._processor = processor

    def take(self, entry: _Entry, settled: Callable[[_Entry], None]) -> None:
        self.lanes.add(entry.incoming.key, (entry, settled))

    async def _work(self, taken: _Taken, lanes: Lanes[_Taken]) -> None:
        entry, settled = taken
        if entry.incoming.withdrawn:
            return
        outcome = await self._processor.process(entry.incoming, lanes)
        if outcome is not Outcome.REFUSED:
            settled(entry)

    async def _work_together(self, run: Sequence[_Taken], lanes: Lanes[_Taken]) -> bool:
        if not await self._processor.process_together([entry.incoming for entry, _ in run], lanes):
            return False
        for entry, settled in run:
            settled(entry)
        return True


class Queue:
    """A named queue. As with a single active consumer, one consumer takes everything and the others stand by."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bindings: set[str] = set()
        self._active: Consumer | None = None
        self._standby: deque[Consumer] = deque()
        self._handing_over = False
        self._entries: dict[_Entry, None] = {}

    @property
    def served(self) -> bool:
        return self._active is not None or self._handing_over

    @property
    def state(self) -> QueueState:
        return QueueState(messages=len(self._entries), consumers=len(self._standby) + (self._active is not None))

    def join(self, consumer: Consumer) -> None:
        if self.served:
            self._standby.append(consumer)
        else:
            self._active = consumer

    async def leave(self, consumer: Consumer) -> None:
        """Stop a consumer; what it left unfinished goes to the next one, in order, or back to its senders."""
        if consumer is not self._active:
            with suppress(ValueError):
                self._standby.remove(consumer)
            return
        self._active, self._handing_over = None, True
        await consumer.lanes.stop(_CLOSE_GRACE_S)
        self._handing_over = False
        if self._standby:
            self._active = self._standby.popleft()
            for entry in self._entries:
                self._active.take(entry, self._settle)
            return
        for entry in list(self._entries):
            self._fail(entry)

    def put(self, incoming: Incoming) -> _Entry:
        entry = _Entry(incoming)
        self._entries[entry] = None
        if self._active is not None:
            self._active.take(entry, self._settle)
        return entry

    def withdraw(self, entry: _Entry) -> None:
        """Take back a message whose sender waits no more, and those behind it: it will come again, before them."""
        if entry.done.done() and entry not in self._entries:
            return
        behind = False
        for other in list(self._entries):
            behind = behind or other is entry
            if behind and other.incoming.key == entry.incoming.key:
                self._fail(other)

    def _settle(self, entry: _Entry) -> None:
        self._entries.pop(entry, None)
        if not entry.done.done():
            entry.done.set_result(None)

    def _fail(self, entry: _Entry) -> None:
        entry.incoming.withdrawn = True
        self._entries.pop(entry, None)
        if not entry.done.done():
            entry.done.set_exception(BusUnavailable(f"the queue {self.name} did not finish the event"))
            entry.done.exception()  # its sender may be gone; the loop must not complain of an unseen error


class Listener:
    """A private copy of matching events, handled in order; the oldest are dropped when it falls too far behind."""

    def __init__(self, bindings: Sequence[str], handler: Handler, tracing: Tracing) -> None:
        self.bindings = tuple(bindings)
        self._handler = handler
        self._tracing = tracing
        self._buffer: deque[bytes] = deque(maxlen=_LISTENER_BUFFER)
        self._filled = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="bus-listener")

    def offer(self, body: bytes) -> None:
        self._buffer.append(body)
        self._filled.set()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=_CLOSE_GRACE_S)

    async def _run(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._buffer:
                event = Event.from_json(self._buffer.popleft())
                try:
                    with self._tracing.processing(event, "listener"):
                        await self._handler(event)
                except Exception:  # noqa: BLE001  # a listener's failure is its own
                    _log.exception("event_listener_failed", event_id=event.id, event_type=event.type)


class LocalBroker:
    """Queues of one process. Make one, give it to every service's LocalBus, start them all, then `open` it.

    Until then publishing raises BusUnavailable, so that no event passes before its last consumer has subscribed.
    """

    def __init__(self) -> None:
        self._open = False
        self.queues: dict[str, Queue] = {}
        self.listeners: set[Listener] = set()
        self.broadcast_handlers: defaultdict[str, list[BroadcastHandler]] = defaultdict(list)

    def open(self) -> None:
        self._open = True

    def close(self) -> None:
        self._open = False

    @property
    def is_open(self) -> bool:
        return self._open

    def queue(self, name: str) -> Queue:
        return self.queues.setdefault(name, Queue(name))

    async def route(self, event: Event, timeout_s: float) -> None:
        """Give the event to every matching queue and wait until all have settled it."""
        self._require_open()
        body = event.to_json()
        queues = [queue for queue in self.queues.values() if any_matches(queue.bindings, event.type)]
        listeners = [listener for listener in self.listeners if any_matches(listener.bindings, event.type)]
        if not queues and not listeners:
            raise Unroutable(f"nobody listens to {event.type}")
        await self.deliver(body, queues, timeout_s, offer_to=listeners)

    async def deliver(
        self, body: bytes, queues: Sequence[Queue], timeout_s: float, *, offer_to: Sequence[Listener] = ()
    ) -> None:
        """Put a message into these queues and wait until all have settled it; raises BusUnavailable otherwise."""
        self._require_open()
        for queue in queues:
            if not queue.served:
                raise BusUnavailable(f"nobody serves the queue {queue.name} now")
        for listener in offer_to:
            listener.offer(body)
        entries = [(queue, queue.put(Incoming.read(body))) for queue in queues]
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(entry.done for _, entry in entries))
        except TimeoutError as error:
            raise BusUnavailable(f"not handled within {timeout_s:g} s") from error
        finally:
            for queue, entry in entries:
                queue.withdraw(entry)

    def _require_open(self) -> None:
        if not self._open:
            raise BusUnavailable("the bus is not open")
