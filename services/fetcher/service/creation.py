"""Jobs on their way in: a wish is checked, estimated in a dry run, or written as a job."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.common.auth import Principal
from libs.common.ids import uuid7
from services.fetcher.domain import filters, names, processing
from services.fetcher.domain.jobs import Check, JobKind, JobState
from services.fetcher.models import Job
from services.fetcher.ports import ItemRepository, JobRepository, PictureStore, SourceCollections
from services.fetcher.service.estimate import Estimate, Estimator, Pace
from services.fetcher.service.lifecycle import Lifecycle

_JOBS_REMEMBERED = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A caller's wish; `filter` and `process` are as they wrote them."""

    kind: JobKind
    database: str
    collection: str
    document_id: str | None = None
    search_field: str | None = None
    filter: Mapping[str, Any] | None = None
    limit: int | None = None
    max_per_domain: int | None = None
    max_attempts: int | None = None
    rate_per_domain: float | None = None
    check: Check = Check.FULL
    robots: bool = False
    refetch: bool = False
    process: Sequence[Mapping[str, Any]] = ()
    write_back: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What the operator lets jobs do; `databases` None means any but the systems' own."""

    own_database: str
    databases: Collection[str] | None
    write_back: bool
    pace: Pace


class JobCreation:
    """`wake` tells this process's workers of a new job."""

    def __init__(
        self,
        *,
        jobs: JobRepository,
        items: ItemRepository,
        lifecycle: Lifecycle,
        source: SourceCollections,
        store: PictureStore,
        allowed: Allowed,
        wake: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._items = items
        self._lifecycle = lifecycle
        self._source = source
        self._store = store
        self._allowed = allowed
        self._estimator = Estimator(source)
        self._wake = wake

    async def create(self, principal: Principal, new: NewJob) -> Job:
        """Write the job; raises what is wrong with the wish, StorageFull and QuotaExceeded."""
        steps = await self._check(new)
        await self._store.check_room()
        now_ms = self._lifecycle.now_ms()
        job = Job(
            id=str(uuid7()),
            owner_id=principal.user_id,
            kind=new.kind,
            database=new.database,
            collection=new.collection,
            document_id=new.document_id,
            search_field=new.search_field,
            filter=json.dumps(new.filter) if new.filter else None,
            limit=new.limit,
            max_per_domain=new.max_per_domain,
            max_attempts=new.max_attempts,
            rate_per_domain=new.rate_per_domain,
            check=new.check,
            robots=new.robots,
            refetch=new.refetch,
            process=json.dumps(steps) if steps else None,
            write_back=new.write_back,
            created_at_ms=now_ms,
            updated_at_ms=now_ms,
        )
        created = await self._lifecycle.create(job)
        self._wake()
        return created

    async def estimate(self, principal: Principal, new: NewJob) -> Estimate:
        """A dry run of the wish: nothing is written and nobody else's server is asked for anything."""
        await self._check(new)
        bounds = self._allowed.pace
        rates = [rate for rate in (bounds.rate_per_domain, new.rate_per_domain) if rate]
        pace = Pace(
            at_once=bounds.at_once,
            per_domain=min(bounds.per_domain, new.max_per_domain or bounds.per_domain),
            rate_per_domain=min(rates, default=None),
        )
        return await self._estimator.estimate(
            new.database,
            new.collection,
            document_id=new.document_id,
            search_field=new.search_field,
            filter_text=json.dumps(new.filter) if new.filter else None,
            limit=new.limit,
            pace=pace,
            mean_bytes=await self._mean_bytes(principal, new),
        )

    async def _mean_bytes(self, principal: Principal, new: NewJob) -> float | None:
        """Of the pictures that the caller's last job on this collection fetched."""
        jobs = await self._jobs.page(
            owner_id=principal.user_id, states=[JobState.COMPLETED], before=None, limit=_JOBS_REMEMBERED
        )
        for job in jobs:
            if (job.database, job.collection) == (new.database, new.collection):
                counts, size_bytes = await self._items.counts(job.id)
                if counts["completed"]:
                    return size_bytes / counts["completed"]
        return None

    async def _check(self, new: NewJob) -> list[dict[str, Any]]:
        """Raise what is wrong with a wish; gives its processing steps, named."""
        allowed = self._allowed
        names.check_source(new.database, new.collection, own_database=allowed.own_database, readable=allowed.databases)
        if new.search_field is not None:
            names.check_field(new.search_field)
        if new.filter is not None:
            filters.parse(new.filter)
        if new.write_back is not None:
            names.check_write_back(new.write_back, allowed=allowed.write_back)
        steps = processing.named(new.process)
        await self._source.check(new.database, new.collection)
        if new.document_id is not None:
            await self._source.document_query(new.database, new.collection, new.document_id)
        return steps
