"""Planning: stream the source documents and write one item per picture, again and again to the same ids."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import structlog
from bson import json_util

from libs.common.errors import TelarError
from services.fetcher.domain import names, references
from services.fetcher.models import Item, Job
from services.fetcher.operations.job_lease import JobLease
from services.fetcher.ports import ItemRepository, PictureStore, SourceCollections
from services.fetcher.service.selection import Selection

_BATCH = 500
_FIRST_BATCH = 64

_log = structlog.get_logger()


class Planner:
    """Plans a job under a lease that each batch renews; a plan that was cut goes on behind its last written batch.

    `on_items` is called with the job as often as items of it were written, and with the domains of those.
    """

    def __init__(
        self,
        lease: JobLease,
        items: ItemRepository,
        source: SourceCollections,
        store: PictureStore,
        *,
        on_items: Callable[[Job, set[str]], None],
    ) -> None:
        self._lease = lease
        self._on_items = on_items
        self._items = items
        self._source = source
        self._selection = Selection(source)
        self._store = store

    async def plan(self, job: Job) -> bool:
        """Write the job's items if nobody else is doing it; False if the right to plan was lost.

        Raises SourceUnavailable, SourceRefused (NoPictureField among them) and DocumentNotFound.
        """
        if not await self._lease.take_to_plan(job):
            return False
        query = await self._selection.query(
            job.database, job.collection, document_id=job.document_id, filter_text=job.filter
        )
        field = job.search_field or await self._field(job, query)
        if job.conditional is None:
            known = not job.refetch and await self._store.holds(job.database, job.collection)
            await self._lease.note(job, conditional=known)
            job = replace(job, conditional=known)
        documents = 0
        if field is not None:
            written = await self._write(job, query, field)
            if written is None:
                return False
            documents = written
        _log.info("job_planned", job_id=job.id, documents=documents, search_field=field)
        return await self._lease.note(job, planned=True, documents=documents, error=None, error_detail=None)

    async def note_wait(self, job: Job, error: TelarError) -> None:
        """Show in the job what its plan waits for."""
        with contextlib.suppress(TelarError):
            await self._lease.note(job, error=error.slug, error_detail="The job goes on when it answers again")

    async def _field(self, job: Job, query: Mapping[str, Any]) -> str | None:
        """The field that holds URLs; None if there are no documents at all."""
        field = await self._selection.guess(job.database, job.collection, query)
        if field is not None:
            await self._lease.note(job, search_field=field, field_guessed=True)
        return field

    async def _write(self, job: Job, query: Mapping[str, Any], field: str) -> int | None:
        """Write the items of all documents; those up to `planned_to` have theirs, if it is still among them."""
        documents = 0
        batch: list[Item] = []
        full = _FIRST_BATCH  # then doubled: downloads begin with the first, and a large one would hold up their claims
        written = job.planned_to is None
        stream = self._source.stream(job.database, job.collection, query, field=field, limit=job.limit)
        async for document in stream:
            documents += 1
            if written:
                batch += items_of(job, document, field)
            else:
                written = json_util.dumps(document["_id"]) == job.planned_to
            if len(batch) >= full or (not written and documents % _BATCH == 0):
                await self._add(job, batch)
                batch, full = [], min(_BATCH, full * 2)
                planned_to = json_util.dumps(document["_id"]) if written else job.planned_to
                if not await self._lease.renew_unless_stopped(
                    job, documents=max(documents, job.documents), planned_to=planned_to
                ):
                    return None
        if not written:
            return await self._write(replace(job, planned_to=None), query, field)
        await self._add(job, batch)
        return documents

    async def _add(self, job: Job, batch: list[Item]) -> None:
        if batch:
            await self._items.add(batch)
            self._on_items(job, {item.domain for item in batch})


def items_of(job: Job, document: Mapping[str, Any], field: str) -> list[Item]:
    """One item per URL of a document."""
    key = document["_id"]
    document_id = str(key)
    document_key = json_util.dumps(key) if job.write_back else None
    folder = f"{job.database}/{job.collection}/{names.folder_name(document_id, field)}"
    return [
        Item(
            id=names.item_id(job.id, folder, type(key).__name__, position),
            job_id=job.id,
            document_id=document_id,
            search_field=field,
            position=position,
            folder=folder,
            url=url,
            domain=references.domain_of(url),
            document_key=document_key,
        )
        for position, url in enumerate(references.pictures_in(document, field), start=1)
    ]
