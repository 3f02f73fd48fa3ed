"""Results written into the source documents, where a job asks for it."""

from collections.abc import AsyncIterator
from typing import Any

import structlog

from services.fetcher.domain.jobs import ItemState
from services.fetcher.models import Item, ItemFilter, Job
from services.fetcher.operations.job_lease import JobLease
from services.fetcher.ports import ItemRepository, SourceCollections

MARK = "telar-fetcher"
"""Tells our own field from one that was there before."""
_PAGE = 500

_log = structlog.get_logger()


class WriteBack:
    """Runs before a job ends, under its lease; the same job writes the same again, so that a crash harms nothing."""

    def __init__(self, lease: JobLease, items: ItemRepository, source: SourceCollections) -> None:
        self._lease = lease
        self._items = items
        self._source = source

    async def run(self, job: Job) -> bool:
        """Write each document's results; False if another replica does it, or the job was paused or cancelled.

        A field that somebody else has filled is left alone and counted. Raises SourceUnavailable and SourceRefused.
        """
        if job.write_back is None:
            return True
        if not await self._lease.take(job):
            return False
        written = refused = 0
        async for items in self._documents(job):
            key = items[0].document_key
            if key is None:
                continue
            done = await self._source.write_back(
                job.database, job.collection, key, field=job.write_back, mark=MARK, value=_value(job, items)
            )
            written, refused = written + done, refused + (not done)
            if (written + refused) % _PAGE == 0 and not await self._lease.renew_unless_stopped(job):
                return False
        _log.info("job_written_back", job_id=job.id, documents=written, refused=refused)
        return await self._lease.note(job, written_back=True, documents_written=written, documents_refused=refused)

    async def _documents(self, job: Job) -> AsyncIterator[list[Item]]:
        """The job's items, those of each document together: their ids begin alike."""
        after: str | None = None
        group: list[Item] = []
        while page := await self._items.page(job.id, ItemFilter(), after=after, limit=_PAGE):
            after = page[-1].id
            for item in page:
                if group and _document(item) != _document(group[0]):
                    yield group
                    group = []
                group.append(item)
        if group:
            yield group


def _document(item: Item) -> str:
    return item.id.rpartition(":")[0]


def _value(job: Job, items: list[Item]) -> dict[str, Any]:
    completed = sum(item.state is ItemState.COMPLETED for item in items)
    status = "completed" if completed == len(items) else "partial" if completed else "failed"
    return {
        "by": MARK,
        "job_id": job.id,
        "status": status,
        "pictures": [
            {
                "url": item.url,
                "status": item.state.value,
                "path": item.path if item.state is ItemState.COMPLETED else None,
                "sha256": item.sha256 if item.state is ItemState.COMPLETED else None,
                "reason": item.reason,
            }
            for item in items
        ],
    }
