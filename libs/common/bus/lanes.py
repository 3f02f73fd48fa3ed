"""Lanes: work runs one at a time per key, keys side by side, and can be stopped without tearing what runs."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

_log = structlog.get_logger()

_CANCEL_TIMEOUT_S = 1.0

Job = Callable[[], Awaitable[None]]


class Abandoned(Exception):
    """The job gives up before its next attempt and leaves its message unsettled: the lanes stop, or nobody waits."""


class Lanes:
    """Serial per key, parallel across keys; at most `concurrency` permits are held at once.

    A job that waits (for its next attempt) gives its permit back, so that a failing subject never starves the others.
    """

    def __init__(self, concurrency: int) -> None:
        self._permits = asyncio.Semaphore(concurrency)
        self._lanes: dict[str, deque[Job]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    def add(self, key: str, job: Job) -> None:
        """Put a job at the end of its key's lane; dropped once the lanes are stopping (its message goes back)."""
        if self._stopping.is_set():
            return
        lane = self._lanes.get(key)
        if lane is not None:
            lane.append(job)
            return
        self._lanes[key] = deque([job])
        task = asyncio.create_task(self._run(key), name=f"bus-lane-{key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, key: str) -> None:
        lane = self._lanes[key]
        try:
            while lane and not self._stopping.is_set():
                job = lane.popleft()
                try:
                    await job()
                except Abandoned:
                    continue
                except Exception:  # noqa: BLE001  # one bad job must not stop its lane
                    _log.exception("bus_job_failed", subject=key)
        finally:
            del self._lanes[key]

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
