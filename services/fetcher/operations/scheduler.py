"""Which item runs when: batches are taken under a lease, lanes keep domains apart, politeness grants each start."""

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from libs.common.errors import TelarError
from libs.common.tasks import cancel
from services.fetcher.domain.jobs import ItemState, JobState
from services.fetcher.models import Failure, Item, Job
from services.fetcher.operations.committer import Committer
from services.fetcher.operations.politeness import Grant, Need, Politeness
from services.fetcher.operations.worker import ItemWorker, Outcome
from services.fetcher.ports import ItemRepository

_POLL_S = 0.5
_REST = 20
_MOST_REST_MS = 10_000
_BATCH = 256
_LANE_SHARE = 8
_MOST_WAITING = 4_000
_TRIMMED_LANE = 8
_MOST_UNWRITTEN_BYTES = 128 * 1024 * 1024
Lane = tuple[str, str]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The operator's bounds; a job may ask for less. `max_downloads` is of the whole deployment."""

    max_downloads: int
    max_per_domain: int
    max_unwritten: int
    rate_per_domain: float | None
    max_attempts: int


class Scheduler:
    """Runs the items of this process; `set_jobs` says which jobs they may belong to."""

    def __init__(
        self,
        items: ItemRepository,
        worker: ItemWorker,
        politeness: Politeness,
        rules: Rules,
        *,
        holder: str,
        lease_ms: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._items = items
        self._worker = worker
        self._politeness = politeness
        self._rules = rules
        self._holder = holder
        self._lease_ms = lease_ms
        self._now_ms = now_ms
        self._committer: Committer | None = None
        self._jobs: dict[str, Job] = {}
        self._waiting: defaultdict[Lane, deque[Item]] = defaultdict(deque)
        self._found_all: dict[str, tuple[int, set[str]]] = {}
        self._grown: defaultdict[str, set[str]] = defaultdict(set)
        self._running: dict[asyncio.Task[None], Item] = {}
        self._wake = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._closing = False
        self._strays_until_ms = 0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def idle(self) -> bool:
        return not (self._running or self._waiting or len(self._outcomes))

    def wake(self) -> None:
        self._wake.set()

    def look_again(self, job: Job, domains: set[str]) -> None:
        """The job has new items of these domains: what the last look found there is no longer all there is.

        What it was to pass over changes nothing: such a look reads the whole job, while everything else waits.
        """
        if job.id in self._jobs:
            self._jobs[job.id] = job
        self._grown[job.id] |= domains
        _, aside = self._found_all.get(job.id, (0, set()))
        if not domains <= aside:
            self._found_all.pop(job.id, None)
        self._wake.set()

    def room(self) -> None:
        """Outcomes were written: more may start."""
        self._start_waiting()
        self._wake.set()

    def start(self, committer: Committer) -> None:
        self._committer = committer
        committer.start()
        self._loops = [
            asyncio.create_task(self._run(), name="fetch-scheduler"),
            asyncio.create_task(self._keep_permits(), name="fetch-permits"),
        ]

    @property
    def _outcomes(self) -> Committer:
        if self._committer is None:
            raise RuntimeError("the scheduler has not been started")
        return self._committer

    async def close(self) -> None:
        """Stop, give back what was not finished, write what was."""
        self._closing = True
        await cancel(*self._loops)
        with contextlib.suppress(TelarError):  # the leases run out by themselves
            await self._drop(set(self._jobs), ItemState.PENDING)
        await cancel(*self._running)  # of a job that was just being taken away; the leases of its items run out
        with contextlib.suppress(TelarError):
            await self._outcomes.close()
            await self._politeness.close()

    async def set_jobs(self, jobs: Mapping[str, Job], states: Mapping[str, JobState | None]) -> None:
        """Work for these jobs only; items of others are given back, cancelled where their job was."""
        gone = set(self._jobs) - set(jobs)
        self._jobs = dict(jobs)
        for job_id in gone:
            self._found_all.pop(job_id, None)
            self._grown.pop(job_id, None)
            cancelled = states.get(job_id) not in (JobState.PAUSED, JobState.RUNNING)
            await self._drop({job_id}, ItemState.CANCELLED if cancelled else ItemState.PENDING)
        if jobs:
            self._wake.set()

    def busy_with(self, job_id: str) -> bool:
        """Whether this process still holds items of the job, or outcomes not yet written."""
        return (
            any(item.job_id == job_id for item in self._running.values())
            or any(lane[0] == job_id and queue for lane, queue in self._waiting.items())
            or job_id in self._outcomes.jobs()
        )

    async def renew(self) -> None:
        await self._items.renew(self._holder, self._held_jobs(), until_ms=self._now_ms() + self._lease_ms)

    def _held_jobs(self) -> set[str]:
        """Jobs that items which were taken in our name belong to."""
        running = {item.job_id for item in self._running.values()}
        return {*self._jobs, *running, *(lane[0] for lane in self._waiting), *self._outcomes.jobs()}

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._give_back_strays()
                await self._fill()
                self._start_waiting()  # not behind a call for more permits
                await self._politeness.acquire(self._needs())
            except TelarError as error:
                self._strays_until_ms = self._now_ms() + 4 * self._lease_ms
                _log.warning("scheduler_waits", error=error.slug)
                await asyncio.sleep(_POLL_S)
            except Exception:  # noqa: BLE001 - the loop outlives any surprise; it is logged with its traceback
                _log.exception("scheduler_failed")
                await asyncio.sleep(_POLL_S)
            self._start_waiting()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()

    async def _give_back_strays(self) -> None:
        """After a call that failed: items may be taken in our name that never reached us, and held for ever."""
        if self._now_ms() >= self._strays_until_ms:
            return
        strays = await self._items.held(self._holder, self._held_jobs())
        strays -= {item.id for item in self._running.values()}
        strays -= {item.id for queue in self._waiting.values() for item in queue}
        strays = {item_id for item_id in strays if item_id not in self._outcomes}
        if strays:
            _log.warning("strays_given_back", items=len(strays))
            await self._items.give_back(self._holder, strays, ItemState.PENDING, now_ms=self._now_ms())

    def _pause_s(self) -> float:
        """Until the next poll, or the moment when a paced domain may be asked again."""
        due_ms, self._politeness.next_start_ms = self._politeness.next_start_ms, 0
        return min(_POLL_S, max(0.001, (due_ms - self._now_ms()) / 1000)) if due_ms else _POLL_S

    async def _keep_permits(self) -> None:
        """Renew permits well within their lease; sooner where a domain's trouble is to be told."""
        pause_s = min(1.0, self._lease_ms / 4000)
        while True:
            try:
                await self._politeness.sync({lane[1] for lane in self._waiting})
                self._wake.set()
            except TelarError as error:
                _log.warning("permits_wait", error=error.slug)
            except Exception:  # noqa: BLE001 - the loop outlives any surprise; it is logged with its traceback
                _log.exception("permits_failed")
            await asyncio.sleep(pause_s / 4 if self._politeness.has_news else pause_s)

    async def _fill(self) -> None:
        """Take more items of each job whose share of the waiting room is half empty: no job waits behind another.

        Lanes that are full already count for nothing: however many slow domains there are, others find room.
        """
        if self._politeness.is_shut_out():
            return
        share = max(16, self._rules.max_downloads * 12 // max(1, len(self._jobs)))
        for job in list(self._jobs.values()):
            lanes = {lane[1]: len(queue) for lane, queue in self._waiting.items() if lane[0] == job.id}
            crowded = {domain for domain, waiting in lanes.items() if waiting >= self._width(job) * _LANE_SHARE}
            aside = crowded | self._politeness.left_alone()
            waiting = sum(count for domain, count in lanes.items() if domain not in aside)
            room = min(_BATCH, share - waiting)
            if room * 2 < share and room < _BATCH:
                continue
            now_ms = self._now_ms()
            if self._exhausted(job.id, aside, now_ms):
                continue
            self._grown[job.id] = set()
            taken = await self._items.claim(
                job.id,
                limit=room,
                holder=self._holder,
                now_ms=now_ms,
                until_ms=now_ms + self._lease_ms,
                without=aside,
            )
            if job.id not in self._jobs:  # paused or cancelled while they were being taken
                await self._give_back(taken)
                continue
            if len(taken) < room and self._grown[job.id] <= aside:
                ended_ms = self._now_ms()
                rest_ms = min(_MOST_REST_MS, (ended_ms - now_ms) * _REST) if aside else 0
                self._found_all[job.id] = (ended_ms + max(int(_POLL_S * 1000), rest_ms), aside)
            for item in taken:
                self._waiting[job.id, item.domain].append(item)
        await self._trim()

    def _exhausted(self, job_id: str, aside: set[str], now_ms: int) -> bool:
        """Whether the last look just now found all there was outside these domains.

        The longer one past left-alone domains took, the later it is repeated: it may have read a whole large job.
        """
        until_ms, aside_then = self._found_all.get(job_id, (0, set()))
        return now_ms < until_ms and aside >= aside_then

    async def _trim(self) -> None:
        """Give back what the slowest lanes hoard, before they fill the process."""
        if self.waiting <= _MOST_WAITING:
            return
        surplus: list[Item] = []
        for queue in self._waiting.values():
            while len(queue) > _TRIMMED_LANE:
                surplus.append(queue.pop())
        await self._give_back(surplus)

    async def _give_back(self, items: list[Item]) -> None:
        await self._items.give_back(self._holder, [item.id for item in items], ItemState.PENDING, now_ms=self._now_ms())

    def _width(self, job: Job | None) -> int:
        return min(self._rules.max_per_domain, (job and job.max_per_domain) or self._rules.max_per_domain)

    def _rate(self, job: Job | None) -> float | None:
        rates = [rate for rate in (self._rules.rate_per_domain, job.rate_per_domain if job else None) if rate]
        return min(rates, default=None)

    def _needs(self) -> dict[str, Need]:
        needs: dict[str, Need] = {}
        for (job_id, domain), queue in self._waiting.items():
            if queue:
                need = needs.setdefault(domain, Need())
                need.count += len(queue)
                need.below = max(need.below, self._width(self._jobs.get(job_id)))
        return needs

    def _start_waiting(self) -> None:
        """Start what may run now: the lane that was served longest ago gives the next, so that none waits for ever."""
        if self._closing:
            return
        progress = True
        while progress and self._has_room():
            progress = False
            for lane, queue in list(self._waiting.items()):
                if not queue:
                    del self._waiting[lane]
                    continue
                job = self._jobs.get(lane[0])
                if self._politeness.is_dead(lane[1]):
                    self._bury(queue)
                    continue
                grant = self._politeness.begin(lane[1], below=self._width(job), rate_per_s=self._rate(job))
                if grant is not None:
                    # Behind all others, also when one place frees at a time.
                    self._waiting[lane] = self._waiting.pop(lane)
                    self._start(queue.popleft(), job, grant)
                    progress = True

    def _has_room(self) -> bool:
        unwritten = len(self._running) + len(self._outcomes)
        return unwritten < self._rules.max_unwritten and self._outcomes.size_bytes < _MOST_UNWRITTEN_BYTES

    def _bury(self, queue: deque[Item]) -> None:
        """Fail the items of a domain that has not answered for so long that it is taken for dead."""
        failure = Failure(reason="domain-dead", detail="Nothing has answered under the URL's host for some time.")
        while queue:
            item = queue.popleft()
            self._outcomes.put(item, self._worker.failed(item, failure), max_attempts=item.attempts)

    def _start(self, item: Item, job: Job | None, grant: Grant) -> None:
        task = asyncio.create_task(self._attempt(item, job, grant), name=f"fetch-{item.id}")
        self._running[task] = item

        def done(ended: asyncio.Task[None]) -> None:
            del self._running[ended]
            self._start_waiting()
            if not self._running:
                self._outcomes.hurry()
            self._wake.set()

        task.add_done_callback(done)

    async def _attempt(self, item: Item, job: Job | None, grant: Grant) -> None:
        max_attempts = (job.max_attempts if job else None) or self._rules.max_attempts
        granted = [grant]

        def downloaded(failure: Failure | None) -> None:
            """The rest of the attempt is no business of the server's: another download may start."""
            self._politeness.end(granted.pop())
            reason, retry_after_s = (failure.reason, failure.retry_after_s) if failure else (None, None)
            self._politeness.report(item.domain, reason, retry_after_s)
            self._start_waiting()

        try:
            outcome = await self._worker.run(item, job, max_attempts=max_attempts, downloaded=downloaded)
        except Exception as error:  # noqa: BLE001 - one item's surprise is that item's failure, never the process's
            _log.exception("attempt_failed", item_id=item.id)
            detail = f"An unexpected {type(error).__name__} has been logged."
            fields = {"state": ItemState.FAILED.value, "reason": "internal", "detail": detail}
            fields["error_class"] = "internal"
            outcome = Outcome(ItemState.FAILED, fields)
        finally:
            if granted:
                self._politeness.end(granted.pop())
        self._outcomes.put(item, outcome, max_attempts=max_attempts)

    async def _drop(self, job_ids: set[str], state: ItemState) -> None:
        """Stop work on jobs and give their items back."""
        await self._outcomes.flush()
        tasks = [task for task, item in self._running.items() if item.job_id in job_ids]
        ids = [self._running[task].id for task in tasks]
        for lane in [lane for lane in self._waiting if lane[0] in job_ids]:
            ids += [item.id for item in self._waiting.pop(lane)]
        await cancel(*tasks)
        ids = [item_id for item_id in ids if item_id not in self._outcomes]
        await self._items.give_back(self._holder, ids, state, now_ms=self._now_ms())
        if state is ItemState.CANCELLED:
            for job_id in job_ids:  # those that were to be tried again later
                await self._items.move(job_id, ItemState.PENDING, state, now_ms=self._now_ms())
