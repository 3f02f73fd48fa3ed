"""Routes of jobs: lists, progress, items, files, steering."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from libs.common.auth import CurrentUser, Principal, requires_scope
from libs.common.errors import Forbidden
from libs.common.etag import IfMatch, set_etag
from libs.common.pagination import link_next
from services.fetcher.adapters.archives import Member, tar_stream, zip_stream
from services.fetcher.api.answers import item_out, job_detail, job_out, report_out
from services.fetcher.api.streams import job_events
from services.fetcher.domain.jobs import ItemState, JobState
from services.fetcher.domain.retries import ErrorClass
from services.fetcher.models import ItemFilter, Job
from services.fetcher.schemas import ItemsPage, JobDetail, JobOut, JobsPage, Report
from services.fetcher.service import JobService

PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No valid credentials"},
    403: {"description": "The key lacks the scope fetch"},
    404: {"description": "There is no such job, or it is somebody else's"},
}
STEERING: dict[int | str, dict[str, Any]] = {409: {"description": "The job's state does not allow it"}}
JobId = Annotated[str, Path(max_length=60)]
Limit = Annotated[int, Query(ge=1, le=200, description="How many at most")]
Cursor = Annotated[str | None, Query(max_length=200, description="next_cursor of the page before")]
Reason = Annotated[str | None, Query(max_length=60, description="A reason, such as http-404")]
DomainWanted = Annotated[str | None, Query(max_length=255, description="A host as in the job's table")]
ErrorClassWanted = Annotated[ErrorClass | None, Query(description="A group of reasons")]
ArchiveFormat = Literal["zip", "tar"]
_ARCHIVES = {"zip": "application/zip", "tar": "application/x-tar"}
_MEDIA = {
    ".png": "image/png",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".tiff": "image/tiff",
    ".jpg": "image/jpeg",
    ".avif": "image/avif",
    ".webp": "image/webp",
    ".json": "application/json",
}


def router(service: JobService, still_allowed: Callable[[Principal], bool]) -> APIRouter:
    """Routes over the use cases; `still_allowed` is asked again and again while a stream is open."""
    routes = APIRouter(prefix="/api/v1/jobs", tags=["jobs"], dependencies=[requires_scope("fetch")], responses=PROBLEMS)
    _add_reading(routes, service, still_allowed)
    _add_files(routes, service, still_allowed)
    _add_steering(routes, service)
    return routes


def _item_filter(
    status: ItemState | None = None,
    error: Reason = None,
    error_class: ErrorClassWanted = None,
    domain: DomainWanted = None,
    document_id: Annotated[str | None, Query(max_length=500)] = None,
) -> ItemFilter:
    return ItemFilter(state=status, reason=error, error_class=error_class, domain=domain, document_id=document_id)


def _add_reading(routes: APIRouter, service: JobService, still_allowed: Callable[[Principal], bool]) -> None:
    @routes.get("")
    async def list_jobs(
        user: CurrentUser,
        request: Request,
        response: Response,
        status: JobState | None = None,
        limit: Limit = 50,
        cursor: Cursor = None,
    ) -> JobsPage:
        """The caller's jobs (an administrator sees all), newest first."""
        jobs = await service.list_jobs(user, state=status, before=cursor, limit=limit + 1)
        page = JobsPage(items=[job_out(job) for job in jobs[:limit]])
        if len(jobs) > limit:
            page.next_cursor = jobs[limit - 1].id
            link_next(request, response, page.next_cursor)
        return page

    @routes.get("/{job_id}")
    async def get_job(user: CurrentUser, response: Response, job_id: JobId) -> JobDetail:
        """A job with its counts by state, bytes, rate, remaining time and table of domains."""
        job = await service.get(user, job_id)
        set_etag(response, job.version)
        return job_detail(job, await service.progress(job), await service.domains(job))

    @routes.get("/{job_id}/items")
    async def list_items(
        user: CurrentUser,
        request: Request,
        response: Response,
        job_id: JobId,
        only: Annotated[ItemFilter, Depends(_item_filter)],
        limit: Limit = 50,
        cursor: Cursor = None,
    ) -> ItemsPage:
        """The job's pictures, each with what came of it."""
        items = await service.list_items(user, job_id, only, after=cursor, limit=limit + 1)
        page = ItemsPage(items=[item_out(item) for item in items[:limit]])
        if len(items) > limit:
            page.next_cursor = items[limit - 1].id
            link_next(request, response, page.next_cursor)
        return page

    @routes.get("/{job_id}/events", response_class=StreamingResponse)
    async def stream_job(user: CurrentUser, job_id: JobId) -> StreamingResponse:
        """Progress as server-sent events: `job` whenever something changed, `end` when the job has ended."""
        await service.get(user, job_id)
        return StreamingResponse(
            job_events(service, user, job_id, still_allowed),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    @routes.get("/{job_id}/report")
    async def report_job(user: CurrentUser, job_id: JobId) -> Report:
        """Why pictures failed, by domain: dead links first of all."""
        job, failures, examples = await service.failures(user, job_id)
        return report_out(job, (await service.progress(job)).items, failures, examples)


def _add_files(routes: APIRouter, service: JobService, still_allowed: Callable[[Principal], bool]) -> None:
    @routes.get("/{job_id}/files/{path:path}", response_class=FileResponse)
    async def get_file(user: CurrentUser, job_id: JobId, path: Annotated[str, Path(max_length=1000)]) -> Response:
        """A picture, what was made of it, or metadata.json of this job, by its `path`."""
        found = await service.file(user, job_id, path)
        headers = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox"}
        media_type = _MEDIA.get(PurePosixPath(path).suffix, "application/octet-stream")
        if found.local is not None:
            return FileResponse(found.local, media_type=media_type, headers=headers)
        headers["content-length"] = str(found.size_bytes)
        return StreamingResponse(found.chunks(), media_type=media_type, headers=headers)

    @routes.get("/{job_id}/export", response_class=StreamingResponse)
    async def export_job(user: CurrentUser, job_id: JobId, format: ArchiveFormat = "zip") -> StreamingResponse:  # noqa: A002 - the API's own word
        """All files of the job's pictures as one archive, made while it is sent."""
        job = await service.get(user, job_id)

        async def members() -> AsyncIterator[Member]:
            async for path, file in service.files(job):
                if not still_allowed(user):
                    raise Forbidden("The token has been revoked")  # cuts the archive, so that nobody takes it for whole
                yield Member(path, file)

        name = f"{job.database}-{job.collection}-{job.id[:8]}.{format}"
        stream = zip_stream(members()) if format == "zip" else tar_stream(members())
        headers = {"content-disposition": f'attachment; filename="{name}"', "x-accel-buffering": "no"}
        return StreamingResponse(stream, media_type=_ARCHIVES[format], headers=headers)


def _add_steering(routes: APIRouter, service: JobService) -> None:
    def steered(name: str, change: Callable[[Principal, str], Awaitable[Job]], summary: str) -> None:
        async def steer(user: CurrentUser, response: Response, job_id: JobId) -> JobOut:
            job = await change(user, job_id)
            set_etag(response, job.version)
            return job_out(job)

        routes.add_api_route(
            f"/{{job_id}}/{name}",
            steer,
            methods=["POST"],
            name=f"{name.replace('-', '_')}_job",
            summary=summary,
            responses=STEERING,
        )

    steered("cancel", service.cancel, "End a job; what is being downloaded is dropped")
    steered("pause", service.pause, "Stop a job until it is resumed; it keeps its slot")
    steered("resume", service.resume, "Go on with a paused job")

    @routes.post("/{job_id}/retry-failed", responses=STEERING)
    async def retry_failed_job(
        user: CurrentUser,
        response: Response,
        job_id: JobId,
        error: Reason = None,
        error_class: ErrorClassWanted = None,
        domain: DomainWanted = None,
    ) -> JobOut:
        """Run the failed items of an ended job again: all, or those of a reason, a class of reasons or a domain."""
        only = ItemFilter(reason=error, error_class=error_class, domain=domain)
        job = await service.retry_failed(user, job_id, only)
        set_etag(response, job.version)
        return job_out(job)

    @routes.delete("/{job_id}", status_code=204, responses={**STEERING, 412: {"description": "The job has changed"}})
    async def delete_job(
        user: CurrentUser,
        job_id: JobId,
        if_match: IfMatch = None,
        files: Annotated[
            bool, Query(description="Also remove the pictures that this job was the last to write")
        ] = False,
    ) -> Response:
        """Forget an ended job and its items; the pictures stay in the store unless `files=true`."""
        await service.delete(user, job_id, if_match=if_match, files=files)
        return Response(status_code=204)
