"""Lanes: work runs one at a time per key, keys side by side, and can be stopped without tearing what runs."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Generic, TypeVar

import structlog

_log = structlog.get_logger()

_CANCEL_TIMEOUT_S = 1.0
_RUN = 16

Item = TypeVar("Item")
Each = Callable[[Item, "Lanes[Item]"], Awaitable[object]]
Together = Callable[[Sequence[Item], "Lanes[Item]"], Awaitable[bool]]
"""Works on several items of one key, all or none; False where none was: then each goes by itself."""


class Abandoned(Exception):
    """The work gives up before its next attempt and leaves its item unsettled: the lanes stop, or nobody waits."""


class Lanes(Generic[Item]):
    """Serial per key, parallel across keys; at most `concurrency` permits are held at once.

    Work that waits (for its next attempt) gives its permit back, so that a failing subject never starves the others.
    What has gathered behind a key's item under way goes to `together`, where there is one, sixteen at a time.
    """

    def __init__(self, concurrency: int, each: Each[Item], together: Together[Item] | None = None) -> None:
        self._each = each
        self._together = together
        self._permits = asyncio.Semaphore(concurrency)
        self._lanes: dict[str, deque[Item]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    def add(self, key: str, item: Item) -> None:
        """Put an item at the end of its key's lane; dropped once the lanes are stopping (its message goes back)."""
        if self._stopping.is_set():
            return
        lane = self._lanes.get(key)
        if lane is not None:
            lane.append(item)
            return
        self._lanes[key] = deque([item])
        task = asyncio.create_task(self._run(key), name=f"bus-lane-{key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, key: str) -> None:
        lane = self._lanes[key]
        try:
            while lane and not self._stopping.is_set():
                run = list(islice(lane, _RUN))
                done = await self._all_done(key, run)
                for item in run:
                    if not done and not self._stopping.is_set():
                        await self._one(key, item)
                    lane.popleft()
        finally:
            del self._lanes[key]

    async def _all_done(self, key: str, run: Sequence[Item]) -> bool:
        if self._together is None or len(run) == 1:
            return False
        try:
            return await self._together(run, self)
        except Abandoned:
            return False
        except Exception:  # noqa: BLE001  # each of them may still go by itself
            _log.exception("bus_run_failed", subject=key)
            return False

    async def _one(self, key: str, item: Item) -> None:
        try:
            await self._each(item, self)
        except Abandoned:
            return
        except Exception:  # noqa: BLE001  # one bad item must not stop its lane
            _log.exception("bus_item_failed", subject=key)

    @asynccontextmanager
    async def permit(self) -> AsyncIterator[None]:
        """Hold one of the `concurrency` places; raises Abandoned instead of starting work on the way out."""
        async with self._permits:
            if self._stopping.is_set():
                raise Abandoned
            yield

    async def pause(self, delay_s: float) -> None:
        """Wait before the next attempt; raises Abandoned as soon as the lanes stop."""
        try:
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise Abandoned

    async def stop(self, grace_s: float) -> None:
        """Start nothing more, let what runs finish for at most `grace_s`, then cancel it."""
        self._stopping.set()
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=grace_s)
        for task in late:
            task.cancel()
        if late:
            _log.warning("bus_handlers_cancelled", count=len(late), grace_s=grace_s)
            await asyncio.wait(late, timeout=_CANCEL_TIMEOUT_S)  # a handler may even refuse to be cancelled
