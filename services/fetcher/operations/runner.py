"""The loop of each replica: starts and plans jobs, feeds the scheduler, ends what is done, tidies up."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping

import structlog

from libs.common.errors import TelarError, Unavailable
from libs.common.tasks import cancel
from services.fetcher.domain.jobs import ENDED, ItemState, JobState, outcome
from services.fetcher.models import Job
from services.fetcher.operations.committer import Committer
from services.fetcher.operations.planner import Planner
from services.fetcher.operations.purger import Purger
from services.fetcher.operations.scheduler import Scheduler
from services.fetcher.operations.write_back import WriteBack
from services.fetcher.ports import ItemRepository, JobRepository
from services.fetcher.service import Lifecycle

_POLL_S = 0.5
_SWEEP_S = 60.0
_PATIENCE_MS = 7 * 86_400_000
_AGAIN_S = 2.0
_ENDED_LATELY_MS = 3_600_000

_log = structlog.get_logger()


class JobRunner:
    """Any number of replicas may run it on one job store: leases and versions decide who does what."""

    def __init__(
        self,
        jobs: JobRepository,
        items: ItemRepository,
        lifecycle: Lifecycle,
        planner: Planner,
        write_back: WriteBack,
        purger: Purger,
        scheduler: Scheduler,
        *,
        lease_s: float,
    ) -> None:
        self._jobs = jobs
        self._items = items
        self._lifecycle = lifecycle
        self._planner = planner
        self._write_back = write_back
        self._purger = purger
        self._scheduler = scheduler
        self._lease_s = lease_s
        self._wake = asyncio.Event()
        self._full: set[str] = set()
        self._ended_since_ms = 0
        """First all ended jobs are looked at: no process may have run since a killed one held their items."""
        self._slow: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def wake(self) -> None:
        """A job was made or steered by this process: look at once."""
        self._wake.set()

    def room(self) -> None:
        """Outcomes were written: more may start, or a job may be done."""
        self._scheduler.room()
        if self._scheduler.idle:
            self._wake.set()

    def pause_full(self, job_ids: set[str]) -> None:
        """The disk is full: these jobs pause until their owners resume them."""
        self._full |= job_ids
        self._wake.set()

    def start(self, committer: Committer) -> None:
        self._scheduler.start(committer)
        self._tasks = [
            asyncio.create_task(self._supervise(), name="fetch-supervisor"),
            asyncio.create_task(self._every(self._lease_s / 3, self._keep_leases), name="fetch-leases"),
            asyncio.create_task(self._every(_SWEEP_S, self._lifecycle.sweep), name="fetch-sweep"),
        ]

    async def close(self) -> None:
        """Stop taking work; unfinished items are given back."""
        await cancel(*self._tasks, *self._slow.values())
        await self._scheduler.close()

    async def _supervise(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._turn()
            except TelarError as error:
                _log.warning("fetch_supervisor_waits", error=error.slug)
            except Exception:  # noqa: BLE001 - the loop outlives any surprise; it is logged with its traceback
                _log.exception("fetch_supervisor_failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()

    async def _turn(self) -> None:
        await self._pause_full()
        jobs = await self._jobs.in_states([JobState.PENDING, JobState.RUNNING, JobState.PAUSED, JobState.DELETED])
        for job in jobs:
            if job.state is JobState.PENDING and await self._lifecycle.start(job):
                self._wake.set()
        running = {job.id: job for job in jobs if job.state is JobState.RUNNING}
        await self._scheduler.set_jobs(running, {job.id: job.state for job in jobs})
        for job in running.values():
            if not job.planned:
                self._work_on(job, self._planner.plan)
            elif not self._scheduler.busy_with(job.id):
                counts = await self._items.counts_if_ended(job.id)
                if counts is not None and (job.write_back is None or job.written_back):
                    await self._end(job, counts)
                elif counts is not None:
                    self._work_on(job, self._write_back.run)
        for job in jobs:
            if job.state is JobState.DELETED and not job.purged:
                self._work_on(job, self._purger.run)

    async def _pause_full(self) -> None:
        for job_id in list(self._full):
            job = await self._jobs.get(job_id)
            if job is None or job.state is not JobState.RUNNING or await self._lifecycle.pause_full(job):
                self._full.discard(job_id)

    async def _end(self, job: Job, counts: Mapping[str, int]) -> None:
        state = outcome(counts)
        error = "nothing-fetched" if state is JobState.FAILED else None
        detail = "None of the pictures could be fetched; see the items' reasons" if error else None
        if await self._lifecycle.end(job, state, items=counts, error=error, error_detail=detail):
            _log.info("job_ended", job_id=job.id, state=state.value, items=counts)

    def _work_on(self, job: Job, work: Callable[[Job], Awaitable[bool]]) -> None:
        """Plan, write back or purge beside everything else; one such work of a job at a time."""
        if job.id not in self._slow:
            task = asyncio.create_task(self._try(job, work), name=f"{work.__name__}-{job.id}")
            self._slow[job.id] = task
            task.add_done_callback(lambda _: self._slow.pop(job.id, None))

    async def _try(self, job: Job, work: Callable[[Job], Awaitable[bool]]) -> None:
        try:
            if await work(job):
                self._wake.set()
            else:
                await asyncio.sleep(_AGAIN_S)  # another replica does it, or the job was paused
        except (OSError, TelarError) as error:
            if job.state is not JobState.DELETED and not isinstance(error, OSError):
                await self._trouble(job, error)
                return
            _log.warning("store_waits", job_id=job.id, error=str(error)[:200])
            await asyncio.sleep(_AGAIN_S)
        except Exception as error:  # noqa: BLE001 - a document nobody foresaw fails its job, never the process
            _log.exception("job_work_failed", job_id=job.id)
            await self._fail(job, TelarError(f"An unexpected {type(error).__name__} has been logged"))

    async def _trouble(self, job: Job, error: TelarError) -> None:
        """Wait for a far end that is away; anything else is the job's end."""
        waited_ms = self._lifecycle.now_ms() - (job.started_at_ms or job.created_at_ms)
        if not isinstance(error, Unavailable) or waited_ms > _PATIENCE_MS:
            await self._fail(job, error)
            return
        _log.warning("job_waits", job_id=job.id, error=error.slug)
        await self._planner.note_wait(job, error)
        await asyncio.sleep(_AGAIN_S)

    async def _fail(self, job: Job, error: TelarError) -> None:
        current = await self._jobs.get(job.id)
        if current is not None and current.state is JobState.RUNNING:
            await self._lifecycle.end(current, JobState.FAILED, error=error.slug, error_detail=error.detail)
            self._wake.set()

    async def _keep_leases(self) -> None:
        """Renew ours, and free the items of workers that are gone (cancelled where their job has ended)."""
        await self._scheduler.renew()
        now_ms = self._lifecycle.now_ms()
        for job in await self._jobs.unsettled(ended_since_ms=self._ended_since_ms):
            if not await self._items.expire(job.id, now_ms):
                continue
            _log.warning("items_freed", job_id=job.id)
            current = await self._jobs.get(job.id)
            if current is not None and current.state in ENDED:
                await self._items.move(job.id, ItemState.PENDING, ItemState.CANCELLED, now_ms=now_ms)
        self._ended_since_ms = now_ms - _ENDED_LATELY_MS
        self._scheduler.wake()

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except TelarError as error:
                _log.warning("fetch_upkeep_waits", error=error.slug)
            except Exception:  # noqa: BLE001 - the loop outlives any surprise; it is logged with its traceback
                _log.exception("fetch_upkeep_failed")
            await asyncio.sleep(seconds)
