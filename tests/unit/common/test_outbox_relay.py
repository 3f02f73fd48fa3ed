"""In which order a relay publishes, on a store in memory and a bus that refuses what it is told to."""

import asyncio
from collections.abc import Awaitable, Callable

from libs.common.bus import BusUnavailable, LocalBus
from libs.common.clock import SystemClock
from libs.common.events import Event
from libs.common.outbox import OutboxRelay, Pending, PublishBatch

Eventually = Callable[..., Awaitable[None]]


class Store:
    """Implements `OutboxStore` over a list."""

    def __init__(self, *told: tuple[str, int]) -> None:
        self.waiting = [Pending(number, event(*one)) for number, one in enumerate(told)]

    async def relay_batch(self, publish: PublishBatch, limit: int) -> int:
        done = set(await publish(self.waiting[:limit])) if self.waiting else set()
        self.waiting = [pending for pending in self.waiting if pending.key not in done]
        return len(done)

    async def close(self) -> None:
        """Nothing to leave."""

    async def sweep(self) -> None:
        """Nothing to forget."""

    async def lag(self) -> tuple[int, float]:
        return len(self.waiting), 0.0


class Refusing(LocalBus):
    """Takes what it is given, but for the first time of some; earlier ones take longer."""

    def __init__(self, *refused: tuple[str, int]) -> None:
        super().__init__()
        self.given: list[tuple[str, int]] = []
        self.under_way = self.most_under_way = 0
        self._refused = set(refused)

    async def publish(self, event: Event) -> None:
        one = (event.subject, event.sequence)
        self.given.append(one)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        for _ in range(100 - event.sequence):
            await asyncio.sleep(0)
        self.under_way -= 1
        if one in self._refused:
            self._refused.discard(one)
            raise BusUnavailable


def event(subject: str, sequence: int) -> Event:
    return Event(
        type="clock.tick.happened.v1",
        subject=subject,
        source="test",
        time=SystemClock().now(),
        data={},
        sequence=sequence,
    )


async def relayed(store: Store, bus: Refusing, eventually: Eventually) -> list[tuple[str, int]]:
    await bus.start()
    relay = OutboxRelay(store, bus, poll_s=0.01)
    await relay.start()

    async def all_gone() -> bool:
        return not store.waiting

    await eventually(all_gone)
    await relay.close()
    await bus.close()
    return bus.given


async def test_a_subjects_events_are_under_way_together_in_their_order(eventually: Eventually) -> None:
    bus = Refusing()
    told = [("a", number) for number in range(30)]
    assert await relayed(Store(*told), bus, eventually) == told
    assert bus.most_under_way == 29


async def test_what_follows_a_refused_event_comes_again_behind_it(eventually: Eventually) -> None:
    bus = Refusing(("a", 2))
    given = await relayed(Store(*(("a", number) for number in range(5))), bus, eventually)
    assert [number for _, number in given] == [0, 1, 2, 3, 4, 2, 3, 4]


async def test_nothing_follows_a_subjects_oldest_event_that_is_refused(eventually: Eventually) -> None:
    bus = Refusing(("a", 0))
    given = await relayed(Store(*((subject, number) for number in range(3) for subject in "ab")), bus, eventually)
    assert given[:2] == [("a", 0), ("b", 0)]
    assert [number for subject, number in given if subject == "a"] == [0, 0, 1, 2]
    assert [number for subject, number in given if subject == "b"] == [0, 1, 2]
