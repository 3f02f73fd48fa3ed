"""What callers ask of their jobs: watch, steer and forget them, and get their files."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from libs.common.auth import Principal
from libs.common.errors import Conflict
from libs.common.etag import check_if_match
from services.fetcher.domain.jobs import ENDED, ItemState, JobState
from services.fetcher.errors import (
    FileNotFetched,
    JobNotFound,
    NothingToRetry,
    PictureStoreUnavailable,
    WrongJobState,
)
from services.fetcher.models import DomainFailures, DomainTally, Item, ItemFilter, Job, Progress
from services.fetcher.ports import ItemRepository, JobRepository, PictureStore, StoredFile
from services.fetcher.service.lifecycle import Lifecycle
from services.fetcher.service.progress import progress_of

_TRIES = 10
_PAGE = 500
_DOMAINS_WITH_EXAMPLES = 100
_EXAMPLES = 5


class JobService:
    """The use cases; a job of somebody else is as absent as one that never was. `wake` tells this process's workers."""

    def __init__(
        self,
        *,
        jobs: JobRepository,
        items: ItemRepository,
        lifecycle: Lifecycle,
        store: PictureStore,
        wake: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._items = items
        self._lifecycle = lifecycle
        self._store = store
        self._wake = wake

    async def get(self, principal: Principal, job_id: str) -> Job:
        job = await self._jobs.get(job_id)
        if job is None or not principal.may_see(job.owner_id):
            raise JobNotFound(f"There is no fetch job {job_id[:60]}")
        return job

    async def progress(self, job: Job) -> Progress:
        return await progress_of(job, self._items, now_ms=self._lifecycle.now_ms())

    async def domains(self, job: Job) -> list[DomainTally]:
        return await self._items.domains(job.id)

    async def list_jobs(
        self, principal: Principal, *, state: JobState | None, before: str | None, limit: int
    ) -> list[Job]:
        """The caller's jobs (an administrator's list holds all), newest first."""
        states = [state] if state else [known for known in JobState if known is not JobState.DELETED]
        owner_id = None if principal.is_admin else principal.user_id
        return await self._jobs.page(owner_id=owner_id, states=states, before=before, limit=limit)

    async def list_items(
        self, principal: Principal, job_id: str, only: ItemFilter, *, after: str | None, limit: int
    ) -> list[Item]:
        job = await self.get(principal, job_id)
        return await self._items.page(job.id, only, after=after, limit=limit)

    async def failures(
        self, principal: Principal, job_id: str
    ) -> tuple[Job, list[DomainFailures], dict[str, list[Item]]]:
        """Why pictures failed, by domain, with some examples of the domains that failed most."""
        job = await self.get(principal, job_id)
        failures = await self._items.failures(job.id)
        examples = {}
        for row in failures[:_DOMAINS_WITH_EXAMPLES]:
            only = ItemFilter(state=ItemState.FAILED, domain=row.domain)
            examples[row.domain] = await self._items.page(job.id, only, after=None, limit=_EXAMPLES)
        return job, failures, examples

    async def cancel(self, principal: Principal, job_id: str) -> Job:
        return await self._steer(principal, job_id, lambda job: self._lifecycle.end(job, JobState.CANCELLED))

    async def pause(self, principal: Principal, job_id: str) -> Job:
        return await self._steer(principal, job_id, self._lifecycle.pause)

    async def resume(self, principal: Principal, job_id: str) -> Job:
        """Raises StorageFull while there is still no room."""

        async def resume(job: Job) -> Job | None:
            if job.state is not JobState.PAUSED:
                raise WrongJobState(f"The job is {job.state.value}; only a paused job can be resumed")
            await self._store.check_room()
            return await self._lifecycle.resume(job)

        return await self._steer(principal, job_id, resume)

    async def retry_failed(self, principal: Principal, job_id: str, only: ItemFilter) -> Job:
        """Run those failed items of an ended job again that match, with new attempts; raises NothingToRetry."""
        failed = replace(only, state=ItemState.FAILED)

        async def reopen(job: Job) -> Job | None:
            if job.state not in ENDED:
                raise WrongJobState(f"The job is {job.state.value}; its failed items can be retried once it has ended")
            if not await self._items.page(job.id, failed, after=None, limit=1):
                raise NothingToRetry("GET …/items?status=failed lists the pictures that failed, with their reasons")
            return await self._lifecycle.reopen(job, failed)

        return await self._steer(principal, job_id, reopen)

    async def delete(self, principal: Principal, job_id: str, *, if_match: str | None, files: bool) -> None:
        """Forget an ended job, and with `files` the pictures that it was the last to write."""

        async def delete(job: Job) -> Job | None:
            check_if_match(if_match, job.version)
            if job.state not in ENDED:
                raise WrongJobState(f"The job is {job.state.value}; cancel it before you delete it")
            return await self._lifecycle.delete(job, files=files)

        await self._steer(principal, job_id, delete)

    async def file(self, principal: Principal, job_id: str, path: str) -> StoredFile:
        """A file that this job fetched, by its path in the store; raises FileNotFetched."""
        job = await self.get(principal, job_id)
        known = await self._items.with_file(job.id, path)
        try:
            found = await self._store.file(path) if known else None
        except OSError as error:
            raise PictureStoreUnavailable("Try again in a moment", retry_after_s=5) from error
        if found is None:
            raise FileNotFetched("See GET …/items for the paths of this job's files")
        return found

    async def files(self, job: Job) -> AsyncIterator[tuple[str, StoredFile]]:
        """All files of a job's pictures, document by document: the metadata, originals, and what was made of them."""
        after: str | None = None
        folder: str | None = None
        only = ItemFilter(state=ItemState.COMPLETED)
        while page := await self._items.page(job.id, only, after=after, limit=_PAGE):
            after = page[-1].id
            for item in page:
                paths = [f"{item.folder}/metadata.json"] if item.folder != folder else []
                folder = item.folder
                paths += [item.path] if item.path else []
                paths += await self._processed(job, item)
                for path in paths:
                    found = await self._store.file(path)
                    if found is not None:
                        yield path, found

    async def _processed(self, job: Job, item: Item) -> list[str]:
        if job.process is None:
            return []
        known = await self._store.known(item) or {}
        return [f"{item.folder}/{made['file']}" for made in known.get("processed") or () if made.get("file")]

    async def _steer(self, principal: Principal, job_id: str, change: Callable[[Job], Awaitable[Job | None]]) -> Job:
        """Load, change, and look again where somebody else was faster."""
        for _ in range(_TRIES):
            changed = await change(await self.get(principal, job_id))
            if changed is not None:
                self._wake()
                return changed
        raise Conflict("The job keeps changing; try again", retry_after_s=1)
