"""What a deleted job leaves: its items and, where its owner wants it, its pictures."""

import asyncio
from collections.abc import Callable

import structlog

from services.fetcher.models import ItemFilter, Job
from services.fetcher.ports import ItemRepository, JobRepository, PictureStore

_PAGE = 500
_AT_ONCE = 8

_log = structlog.get_logger()


class Purger:
    """Goes on where it was cut: what is gone is gone, and the items go only when all their files have."""

    def __init__(
        self,
        jobs: JobRepository,
        items: ItemRepository,
        store: PictureStore,
        *,
        holder: str,
        lease_ms: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._jobs = jobs
        self._items = items
        self._store = store
        self._holder = holder
        self._lease_ms = lease_ms
        self._now_ms = now_ms

    async def run(self, job: Job) -> bool:
        """Purge a deleted job; False if another replica does it. Raises OSError when the store fails."""
        now_ms = self._now_ms()
        if not await self._jobs.claim(job.id, holder=self._holder, now_ms=now_ms, until_ms=now_ms + self._lease_ms):
            return False
        if job.remove_files:
            await self._remove_files(job)
        await self._items.delete_of(job.id)
        _log.info("job_purged", job_id=job.id, files=job.remove_files)
        return await self._jobs.note_planning(job.id, holder=self._holder, purged=True)

    async def _remove_files(self, job: Job) -> None:
        after: str | None = None
        while page := await self._items.page(job.id, ItemFilter(), after=after, limit=_PAGE):
            after = page[-1].id
            folders = sorted({item.folder for item in page})
            for at in range(0, len(folders), _AT_ONCE):
                batch = folders[at : at + _AT_ONCE]
                await asyncio.gather(*(self._store.remove(folder, job.id) for folder in batch))
            until_ms = self._now_ms() + self._lease_ms
            await self._jobs.note_planning(job.id, holder=self._holder, planner_until_ms=until_ms)
