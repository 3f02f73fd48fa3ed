"""Routes that start jobs."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Response

from libs.common.auth import CurrentUser, Principal, requires_scope
from libs.common.etag import set_etag
from services.fetcher.api.answers import dry_run_out, job_out
from services.fetcher.domain.jobs import JobKind
from services.fetcher.schemas import BatchRequest, CollectionRequest, DocumentRequest, DryRun, JobOut
from services.fetcher.service import JobCreation, NewJob

PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No valid credentials"},
    403: {"description": "The key lacks the scope fetch, or the account is disabled"},
    404: {"description": "There is no such database, collection or document"},
    409: {"description": "The quota of unfinished jobs is used up"},
    422: {"description": "A name, the filter or the body is not allowed; errors[] names where"},
    507: {"description": "The picture store is full"},
    503: {"description": "The job store or the source database does not answer"},
}
Database = Annotated[str, Path(max_length=64)]
DryRunWanted = Annotated[bool, Query(description="Only tell what the job would fetch; answers 200")]
Collection = Annotated[str, Path(max_length=120)]


def router(service: JobCreation) -> APIRouter:
    routes = APIRouter(
        prefix="/api/v1/download", tags=["downloads"], dependencies=[requires_scope("fetch")], responses=PROBLEMS
    )

    @routes.post("/collection/{database}/{collection}", status_code=202)
    async def download_collection(
        user: CurrentUser,
        response: Response,
        database: Database,
        collection: Collection,
        body: Annotated[CollectionRequest | None, Body()] = None,
        dry_run: DryRunWanted = False,
    ) -> JobOut | DryRun:
        """Fetch the pictures of a whole collection, or of what a filter leaves of it."""
        new = _new(JobKind.COLLECTION, database, collection, body or CollectionRequest())
        return await _answer(service, user, new, response, dry_run=dry_run)

    @routes.post(
        "/document/{database}/{collection}/{document_id}",
        status_code=202,
    )
    async def download_document(
        user: CurrentUser,
        response: Response,
        database: Database,
        collection: Collection,
        document_id: Annotated[str, Path(max_length=500)],
        body: Annotated[DocumentRequest | None, Body()] = None,
        dry_run: DryRunWanted = False,
    ) -> JobOut | DryRun:
        """Fetch the pictures of one document; its id is an ObjectId, a number or a text."""
        new = _new(JobKind.DOCUMENT, database, collection, body or DocumentRequest(), document_id=document_id)
        return await _answer(service, user, new, response, dry_run=dry_run)

    @routes.post("/batch", status_code=202)
    async def download_batch(
        user: CurrentUser, response: Response, body: BatchRequest, dry_run: DryRunWanted = False
    ) -> JobOut | DryRun:
        """Fetch the pictures of the documents that a filter selects."""
        new = _new(JobKind.BATCH, body.database, body.collection, body)
        return await _answer(service, user, new, response, dry_run=dry_run)

    return routes


def _new(
    kind: JobKind, database: str, collection: str, body: DocumentRequest, *, document_id: str | None = None
) -> NewJob:
    many = body if isinstance(body, CollectionRequest) else CollectionRequest()
    return NewJob(
        kind=kind,
        database=database,
        collection=collection,
        document_id=document_id,
        search_field=body.search_field,
        filter=many.filter,
        limit=many.limit,
        max_per_domain=body.options.max_per_domain,
        max_attempts=body.options.max_attempts,
        rate_per_domain=body.options.rate_per_domain,
        check=body.options.check,
        robots=body.options.robots,
        refetch=body.options.refetch,
        process=[step.model_dump(exclude_none=True) for step in body.options.process],
        write_back=body.options.write_back,
    )


async def _answer(
    service: JobCreation, user: Principal, new: NewJob, response: Response, *, dry_run: bool
) -> JobOut | DryRun:
    if dry_run:
        response.status_code = 200
        return dry_run_out(await service.estimate(user, new))
    job = await service.create(user, new)
    response.headers["location"] = f"/api/v1/jobs/{job.id}"
    set_etag(response, job.version)
    return job_out(job)
