"""What a deleted job leaves: its items and, where its owner wants it, its pictures."""

import asyncio

import structlog

from services.fetcher.models import ItemFilter, Job
from services.fetcher.operations.job_lease import JobLease
from services.fetcher.ports import ItemRepository, PictureStore

_PAGE = 500
_AT_ONCE = 8

_log = structlog.get_logger()


class Purger:
    """Goes on where it was cut: what is gone is gone, and the items go only when all their files have."""

    def __init__(self, lease: JobLease, items: ItemRepository, store: PictureStore) -> None:
        self._lease = lease
        self._items = items
        self._store = store

    async def run(self, job: Job) -> bool:
        """Purge a deleted job; False if another replica does it. Raises OSError when the store fails."""
        if not await self._lease.take(job):
            return False
        if job.remove_files:
            await self._remove_files(job)
        await self._items.delete_of(job.id)
        _log.info("job_purged", job_id=job.id, files=job.remove_files)
        return await self._lease.note(job, purged=True)

    async def _remove_files(self, job: Job) -> None:
        after: str | None = None
        while page := await self._items.page(job.id, ItemFilter(), after=after, limit=_PAGE):
            after = page[-1].id
            folders = sorted({item.folder for item in page})
            for at in range(0, len(folders), _AT_ONCE):
                batch = folders[at : at + _AT_ONCE]
                await asyncio.gather(*(self._store.remove(folder, job.id) for folder in batch))
            await self._lease.renew(job)
