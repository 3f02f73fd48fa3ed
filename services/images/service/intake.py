"""One pass over an arriving file: digests, inspection and storage at once, each in a thread, while more arrives."""

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from services.images.domain import Observation
from services.images.ports import Chunk, Inspector

Work = Callable[[Chunk], Awaitable[None]]

AHEAD = 2
"""How many chunks may wait for the slowest work, so that none of the others stands still when the machine is busy."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What is known of a file once it has passed."""

    sha256: str
    sha512: str
    seen: Observation


class Intake:
    """Takes a file chunk by chunk; at most AHEAD + 1 chunks are in memory, the one at work and those that wait for it.

    `write` stores a chunk; None for a file that is stored already.
    """

    def __init__(self, inspector: Inspector, write: Work | None = None) -> None:
        self._inspector = inspector
        self._sha256 = hashlib.sha256()
        self._sha512 = hashlib.sha512()
        # The slowest first; all of them release the interpreter's lock.
        self._works: Sequence[Work] = (self._hash, self._look, *((write,) if write is not None else ()))
        self._under_way: deque[tuple[asyncio.Task[None], ...]] = deque()
        """A task of each work for every chunk, the oldest chunk first."""
        self._given_up = False

    async def take(self, chunk: Chunk) -> None:
        """Start the works on a chunk, each after its own on the one before. Raises what the store does, or did."""
        while len(self._under_way) > AHEAD:
            await self._settle()
        before = self._under_way[-1] if self._under_way else (None,) * len(self._works)
        pairs = zip(self._works, before, strict=True)
        self._under_way.append(tuple(asyncio.create_task(self._do(work, chunk, after)) for work, after in pairs))

    async def finish(self) -> Taken:
        """Wait for the last chunk and say what the file is."""
        while self._under_way:
            await self._settle()
        return Taken(self._sha256.hexdigest(), self._sha512.hexdigest(), self._inspector.finish())

    async def abandon(self) -> None:
        """Wait until no thread is at work any more, so that the file can be removed."""
        self._given_up = True
        tasks = [task for step in self._under_way for task in step]
        self._under_way.clear()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _settle(self) -> None:
        """Wait for the oldest chunk; raises the first failure."""
        await asyncio.wait(self._under_way[0])
        failures = [task.exception() for task in self._under_way.popleft()]
        for failure in failures:
            if failure is not None:
                raise failure

    async def _do(self, work: Work, chunk: Chunk, after: asyncio.Task[None] | None) -> None:
        if after is not None:
            await asyncio.wait([after])
            after.result()  # what comes after a failure fails of the same
        if not self._given_up:
            await work(chunk)

    async def _hash(self, chunk: Chunk) -> None:
        await asyncio.to_thread(self._sha512.update, chunk)

    async def _look(self, chunk: Chunk) -> None:
        await asyncio.to_thread(self._hash_and_inspect, chunk)

    def _hash_and_inspect(self, chunk: Chunk) -> None:
        self._sha256.update(chunk)
        self._inspector.eat(chunk)
