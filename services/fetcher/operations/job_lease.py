"""The sole right of one process to plan, write back or purge a job."""

from collections.abc import Callable
from typing import Any

from services.fetcher.models import Job
from services.fetcher.ports import JobRepository


class JobLease:
    """Held for `lease_ms` from the last time that it was taken or renewed; whoever lost it writes nothing more."""

    def __init__(self, jobs: JobRepository, *, holder: str, lease_ms: int, now_ms: Callable[[], int]) -> None:
        self._jobs = jobs
        self._holder = holder
        self._lease_ms = lease_ms
        self._now_ms = now_ms

    async def take_to_plan(self, job: Job) -> bool:
        """False if another process has it, or the job is planned."""
        now_ms = self._now_ms()
        until_ms = now_ms + self._lease_ms
        return await self._jobs.claim_planning(job.id, holder=self._holder, now_ms=now_ms, until_ms=until_ms)

    async def take(self, job: Job) -> bool:
        """False if another process has it."""
        now_ms = self._now_ms()
        return await self._jobs.claim(job.id, holder=self._holder, now_ms=now_ms, until_ms=now_ms + self._lease_ms)

    async def renew(self, job: Job, **found: Any) -> bool:
        """Hold it longer, and write what was found; False if it was lost."""
        return await self.note(job, planner_until_ms=self._now_ms() + self._lease_ms, **found)

    async def renew_unless_stopped(self, job: Job, **found: Any) -> bool:
        """As `renew`; False also if the job was deleted or is in another state than it was."""
        current = await self._jobs.get(job.id)
        if current is None or current.state is not job.state:
            return False
        return await self.renew(job, **found)

    async def note(self, job: Job, **found: Any) -> bool:
        """Write what was found into the job; False if the lease was lost."""
        return await self._jobs.note_planning(job.id, holder=self._holder, **found)
