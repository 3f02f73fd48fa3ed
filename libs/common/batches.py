"""Batches: what is asked for while other work is under way is done together, in one go; so are looks."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from libs.common.tasks import cancel

Item = TypeVar("Item")
Found = TypeVar("Found")
Work = Callable[[Sequence[Item]], Awaitable[Sequence[Exception | None]]]
"""Works on some items, in the order of their calls; gives for each what went wrong with it."""
_MANY = 10_000


class Batches(Generic[Item]):
    """Gathers calls: an item that finds nothing under way is worked on at once, others wait and then go together.

    A batch that takes longer than `patience_s` (it may wait for a lock) holds the next one up no longer; at most
    `at_once` run beside each other, of at most `most` items.
    """

    def __init__(self, work: Work[Item], *, most: int = 64, at_once: int = 4, patience_s: float = 0.05) -> None:
        self._work = work
        self._most = most
        self._at_once = at_once
        self._patience_s = patience_s
        self._waiting: deque[tuple[Item, asyncio.Future[None]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._awaited: object | None = None

    async def do(self, item: Item) -> None:
        """Have the item worked on; raises what went wrong with it. A cancelled call may still have been worked on."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        self._begin()
        await done

    async def close(self, grace_s: float = 5.0) -> None:
        """Let what was asked for end, for so long at most, before what it works with is closed; then cancel it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_s
        while self._tasks and (left_s := until - loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s)
            await asyncio.sleep(0)  # the end of one begins the next
        await cancel(*self._tasks)

    def _begin(self) -> None:
        if not self._waiting or self._awaited is not None or len(self._tasks) >= self._at_once:
            return
        batch = object()
        self._awaited = batch
        # In a context of its own: the batch belongs to none of its callers.
        task = asyncio.get_running_loop().create_task(self._run(batch), name="batch", context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._begin()

    def _await_no_longer(self, batch: object) -> None:
        if self._awaited is batch:
            self._awaited = None
            self._begin()

    async def _run(self, batch: object) -> None:
        taken = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        calls = [call for call in taken if not call[1].done()]
        patience = asyncio.get_running_loop().call_later(self._patience_s, self._await_no_longer, batch)
        faults: Sequence[Exception | None] = ()
        try:
            if calls:
                faults = await self._work([item for item, _ in calls])
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers are told
            faults = [error] * len(calls)
        finally:
            patience.cancel()
            self._settle(calls, faults)
            self._await_no_longer(batch)

    def _settle(self, calls: Sequence[tuple[Item, asyncio.Future[None]]], faults: Sequence[Exception | None]) -> None:
        """Tell the callers; those of a cancelled batch are cancelled, too."""
        for number, (_, done) in enumerate(calls):
            if done.done():
                continue
            if number >= len(faults):
                done.cancel()
            elif (fault := faults[number]) is not None:
                done.set_exception(fault)
            else:
                done.set_result(None)


@dataclass(eq=False, slots=True)
class _Asker(Generic[Found]):
    found: Found | None = None


class SharedLook(Generic[Found]):
    """A look that all share who ask while another one is under way, which may have begun too early for them."""

    def __init__(self, look: Callable[[], Awaitable[Found]]) -> None:
        self._look = look
        self._askers = Batches(self._answer, most=_MANY, at_once=2)

    async def now(self) -> Found:
        """What is seen by a look that begins after this call; raises what the look raises."""
        asker: _Asker[Found] = _Asker()
        await self._askers.do(asker)
        return cast("Found", asker.found)

    async def _answer(self, askers: Sequence[_Asker[Found]]) -> Sequence[Exception | None]:
        found = await self._look()
        for asker in askers:
            asker.found = found
        return [None] * len(askers)
