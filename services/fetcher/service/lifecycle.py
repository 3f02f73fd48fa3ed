"""A job's changes of state, each with its event and its owner's quota."""

from collections.abc import Mapping
from typing import Any, cast

import structlog
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.clock import Clock
from libs.common.events import Event
from libs.common.quotas import ResourceRef, Usage
from libs.common.telemetry import current_traceparent
from libs.common.uow import before_commit
from services.fetcher import events
from services.fetcher.domain.jobs import ENDED, ItemState, JobState, may_become
from services.fetcher.errors import WrongJobState
from services.fetcher.models import ItemFilter, Job
from services.fetcher.ports import AccountRepository, ItemRepository, JobRepository

_ENDING: Mapping[JobState, type[events.JobPayload]] = {
    JobState.COMPLETED: events.JobCompleted,
    JobState.FAILED: events.JobFailed,
    JobState.CANCELLED: events.JobCancelled,
}
_ORPHAN_MS = 60_000

_log = structlog.get_logger()


class Lifecycle:
    """Moves jobs from state to state; a lost race gives None, and the caller looks again."""

    def __init__(
        self, jobs: JobRepository, items: ItemRepository, accounts: AccountRepository, clock: Clock, *, source: str
    ) -> None:
        self._jobs = jobs
        self._items = items
        self._accounts = accounts
        self._clock = clock
        self._source = source

    def now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)

    async def create(self, job: Job) -> Job:
        """Reserve a slot and write the job. Raises QuotaExceeded, Forbidden or Unavailable.

        Where the job store did not answer, the job may have been written: its slot stays until the sweep has looked.
        """
        usage = await self._accounts.reserve(job.owner_id, job.id)
        mark = before_commit.get()
        try:
            if mark is not None:
                await mark(cast("AsyncSession", None))  # the Mongo store of idempotency keys needs no session
        except BaseException:
            await self._accounts.begin_release(job.owner_id, job.id)
            await self._accounts.release(job.id)
            raise
        await self._jobs.add(job, self._event(events.JobCreated, job, usage=usage))
        return job

    async def start(self, job: Job) -> Job | None:
        return await self._change(job, JobState.RUNNING, events.JobStarted, started_at_ms=self.now_ms())

    async def pause(self, job: Job) -> Job | None:
        return await self._change(job, JobState.PAUSED, None)

    async def pause_full(self, job: Job) -> Job | None:
        """Pause a job whose pictures find no room."""
        _log.error("job_paused_storage_full", job_id=job.id)
        return await self._change(
            job,
            JobState.PAUSED,
            None,
            error="storage-full",
            error_detail="The picture store is full; resume the job when there is room again",
        )

    async def resume(self, job: Job) -> Job | None:
        started_at_ms = job.started_at_ms or self.now_ms()
        return await self._change(
            job, JobState.RUNNING, events.JobStarted, started_at_ms=started_at_ms, error=None, error_detail=None
        )

    async def reopen(self, job: Job, only: ItemFilter) -> Job | None:
        """Run an ended job again for those of its failed items that match; it takes a slot again.

        Of a lost race the slot stays: it is the winner's, or the sweep finds that nobody runs on it.
        """
        self._check(job, JobState.RUNNING)
        usage = await self._accounts.reserve(job.owner_id, job.id)
        # Before the job runs: a running job without open items would be taken for done.
        await self._items.move(job.id, ItemState.FAILED, ItemState.PENDING, now_ms=self.now_ms(), only=only)
        return await self._change(
            job,
            JobState.RUNNING,
            events.JobStarted,
            usage=usage,
            finished_at_ms=None,
            written_back=False,
            error=None,
            error_detail=None,
        )

    async def end(
        self,
        job: Job,
        state: JobState,
        *,
        items: Mapping[str, int] | None = None,
        error: str | None = None,
        error_detail: str | None = None,
    ) -> Job | None:
        """Complete, fail or cancel a job and give its slot back; `items` are its counts, where they are known."""
        self._check(job, state)
        usage = await self._accounts.begin_release(job.owner_id, job.id)
        if items is None:
            items, _ = await self._items.counts(job.id)
        changed = await self._change(
            job,
            state,
            _ENDING[state],
            usage=usage,
            items=items,
            finished_at_ms=self.now_ms(),
            error=error,
            error_detail=error_detail,
        )
        if changed is not None:
            await self._accounts.release(job.id)
            if state is not JobState.COMPLETED:
                await self._items.move(job.id, ItemState.PENDING, ItemState.CANCELLED, now_ms=self.now_ms())
        return changed

    async def delete(self, job: Job, *, files: bool) -> Job | None:
        """Forget an ended job; its items and (if wanted) its pictures are purged afterwards."""
        return await self._change(job, JobState.DELETED, events.JobDeleted, remove_files=files)

    async def sweep(self) -> None:
        """Free the slots of jobs that ended, or were never written, when their process died in between."""
        for job_id, taken_at_ms in await self._accounts.slots():
            if self.now_ms() - taken_at_ms < _ORPHAN_MS:
                continue
            job = await self._jobs.get(job_id)
            if job is None or job.state in ENDED:
                await self._accounts.release(job_id, taken_at_ms=taken_at_ms)
        await self._jobs.sweep()

    def _check(self, job: Job, state: JobState) -> None:
        if not may_become(job.state, state):
            raise WrongJobState(f"The job is {job.state.value}; it cannot become {state.value}")

    async def _change(
        self,
        job: Job,
        state: JobState,
        payload: type[events.JobPayload] | None,
        *,
        usage: Usage | None = None,
        items: Mapping[str, int] | None = None,
        **changes: Any,
    ) -> Job | None:
        self._check(job, state)
        event = None
        if payload is not None:
            error = changes.get("error")
            event = self._event(
                payload, job, usage=usage, state=state, items=items, error=error, version=job.version + 1
            )
        return await self._jobs.change(job, event, state=state, **changes)

    def _event(
        self,
        payload: type[events.JobPayload],
        job: Job,
        *,
        usage: Usage | None,
        state: JobState | None = None,
        items: Mapping[str, int] | None = None,
        error: str | None = None,
        version: int | None = None,
    ) -> Event:
        name = f"{job.database}.{job.collection}" + (f"/{job.document_id}" if job.document_id else "")
        data = payload(
            resource=ResourceRef(type="fetch_job", id=job.id, name=name),
            usage=usage,
            kind=job.kind.value,
            database=job.database,
            collection=job.collection,
            state=(state or job.state).value,
            items=dict(items or {}),
            error=error,
        )
        return Event(
            type=payload.event_type,
            subject=job.id,
            source=self._source,
            time=self._clock.now(),
            data=data.model_dump(mode="json"),
            owner=job.owner_id,
            traceparent=current_traceparent(),
            sequence=version or job.version,
        )
