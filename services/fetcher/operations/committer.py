"""Outcomes on their way out: pictures and metadata into the store, then the items' states, a batch at a time."""

import asyncio
import contextlib
import errno
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from libs.common.errors import TelarError
from libs.common.tasks import cancel
from services.fetcher.domain.jobs import ItemState
from services.fetcher.models import Failure, Item
from services.fetcher.operations.worker import ItemWorker, Outcome
from services.fetcher.ports import ItemRepository, PictureStore

_BATCH = 512
_GATHER = 64
_GATHER_S = 0.1
_AGAIN_S = 0.5
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_log = structlog.get_logger()

OnOutcome = Callable[[ItemState, Item, Mapping[str, Any]], None]


class Committer:
    """An item is settled only after its picture and metadata are durable; a crash in between fetches it again.

    While one batch is written the next gathers: the busier the process, the larger the batches. `on_room` is
    called when a batch is done, `on_full` with the jobs whose pictures found the disk full: those items wait on,
    their attempt uncounted.
    """

    def __init__(
        self,
        items: ItemRepository,
        store: PictureStore,
        worker: ItemWorker,
        *,
        holder: str,
        on_outcome: OnOutcome,
        on_room: Callable[[], None],
        on_full: Callable[[set[str]], None],
    ) -> None:
        self._items = items
        self._store = store
        self._worker = worker
        self._holder = holder
        self._on_outcome = on_outcome
        self._on_room = on_room
        self._on_full = on_full
        self._waiting: dict[str, tuple[Item, Outcome, int]] = {}
        self._in_work: set[str] = set()
        self._storing = asyncio.Lock()
        self._settled = asyncio.Event()
        self.size_bytes = 0
        """What the bodies that wait here take of the memory."""
        self._wake = asyncio.Event()
        self._many = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._waiting

    def jobs(self) -> set[str]:
        """Those whose outcomes wait here."""
        return {item.job_id for item, _, _ in self._waiting.values()}

    def put(self, item: Item, outcome: Outcome, *, max_attempts: int) -> None:
        self._waiting[item.id] = (item, outcome, max_attempts)
        if outcome.writing is not None and outcome.writing.body is not None:
            self.size_bytes += len(outcome.writing.body.data or b"")
        self._wake.set()
        if len(self._waiting) >= _GATHER:
            self._many.set()

    def hurry(self) -> None:
        """Nothing more is under way: what waits here need not wait for company."""
        self._many.set()

    def start(self) -> None:
        self._loops = [asyncio.create_task(self._run(), name=f"fetch-committer-{number}") for number in range(2)]

    async def close(self) -> None:
        """Write what is left. Raises JobStoreUnavailable."""
        try:
            await self.flush()
        finally:  # only now: a batch that is being stored must not be stored again beside it
            await cancel(*self._loops)

    async def flush(self) -> None:
        """Write everything that was put before. Raises JobStoreUnavailable, and then keeps what is not written."""
        last = next(reversed(self._waiting), None)
        while last is not None and last in self._waiting:
            if self._has_due():
                await self._commit()
            else:
                self._settled.clear()
                await self._settled.wait()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while self._has_due():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_GATHER_S):
                            await self._many.wait()
                    self._many.clear()
                    await self._commit()
            except TelarError as error:
                _log.warning("committer_waits", error=error.slug)
                await asyncio.sleep(_AGAIN_S)
                self._wake.set()
            except Exception:  # noqa: BLE001 - the loop outlives any surprise; it is logged with its traceback
                _log.exception("committer_failed")
                await asyncio.sleep(_AGAIN_S)
                self._wake.set()

    def _has_due(self) -> bool:
        return len(self._waiting) > len(self._in_work)

    async def _commit(self) -> None:
        """Store one batch and settle it; the next one may be stored while this one is being settled."""
        taken: list[str] = []
        try:
            async with self._storing:
                taken = [item_id for item_id in self._waiting if item_id not in self._in_work][:_BATCH]
                self._in_work.update(taken)
                await self._write([self._waiting[item_id] for item_id in taken])
            await self._settle(taken)
        finally:
            self._in_work.difference_update(taken)
            self._settled.set()
        self._on_room()

    async def _settle(self, taken: list[str]) -> None:
        outcomes = [self._waiting[item_id][:2] for item_id in taken]
        written = await self._items.settle(self._holder, [(item, outcome.fields) for item, outcome in outcomes])
        full: set[str] = set()
        for item, outcome in outcomes:
            del self._waiting[item.id]
            self._on_outcome(outcome.state, item, outcome.fields)
            if outcome.fields.get("reason") == "storage-full":
                full.add(item.job_id)
        if written < len(outcomes):
            _log.warning("items_lost", items=len(outcomes) - written)
        if full:
            self._on_full(full)

    async def _write(self, batch: list[tuple[Item, Outcome, int]]) -> None:
        """Store the batch; what was stored is remembered, so that only settling is tried again."""
        due = [entry for entry in batch if entry[1].writing is not None]
        if not due:
            return
        writings = [outcome.writing for _, outcome, _ in due if outcome.writing is not None]
        errors = await self._store.write(writings)
        self.size_bytes -= sum(len(writing.body.data or b"") for writing in writings if writing.body is not None)
        for (item, outcome, max_attempts), error in zip(due, errors, strict=True):
            if error is None:
                outcome = Outcome(outcome.state, outcome.fields)  # noqa: PLW2901 - the same outcome, now stored
            else:
                _log.warning("picture_not_stored", item_id=item.id, error=type(error).__name__, errno=error.errno)
                outcome = self._not_stored(item, error, max_attempts)  # noqa: PLW2901 - what became of it
            self._waiting[item.id] = (item, outcome, max_attempts)

    def _not_stored(self, item: Item, error: OSError, max_attempts: int) -> Outcome:
        if error.errno in _FULL:
            changes = {"state": ItemState.PENDING.value, "attempts": item.attempts - 1}
            return Outcome(ItemState.PENDING, {**changes, "reason": "storage-full", "detail": "The disk is full."})
        failure = Failure(reason="storage-failed", detail="The picture could not be stored.")
        outcome = self._worker.ended(item, failure, max_attempts=max_attempts)
        return Outcome(outcome.state, outcome.fields)  # its metadata could not be written either
