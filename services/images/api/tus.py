"""Routes of resumable uploads: tus 1.0.0 (https://tus.io/protocols/resumable-upload)."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC
from email.utils import format_datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common.auth import CurrentUser
from libs.common.middleware import header
from libs.common.problems import problem_response
from services.images.api import tus_headers
from services.images.errors import NotTusBytes, OffsetMismatch, UploadInterrupted
from services.images.service import ResumableUploads
from services.images.service.appending import Part
from services.images.service.resumable import NewUpload, Progress

PATH = "/uploads"
CHUNK_BYTES = 1 << 21
_FLUSH_S = 1.0
_PUBLIC_PATH = "/api/v1" + PATH
_TAGS: Any = ["images"]
_NO_UPLOAD = "No such upload, or it is not the caller's"
_GONE = "The upload has expired or its file was refused; the image's record says why"
_VERSION = "Tus-Resumable is missing or not 1.0.0; see Tus-Version"


class TusResponses:
    """Middleware: each answer under the uploads' path says which tus version it is of, whatever layer made it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_ours(scope["path"]):
            await self._app(scope, receive, send)
            return

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"tus-resumable", tus_headers.VERSION.encode())]
                if message["status"] == 412:  # noqa: PLR2004 - the version's own status
                    headers.append((b"tus-version", tus_headers.VERSION.encode()))
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, send_with_version)


def streams_its_body(scope: Scope) -> bool:
    """Whether a request brings an upload's bytes; any other body is read whole, and bounded."""
    if not _is_ours(scope["path"]):
        return False
    return scope["method"] == "PATCH" or (scope["method"] == "POST" and _brings_bytes(header(scope, b"content-type")))


class UploadHeaders:
    """The header fields that a request with an upload's bytes may have."""

    def __init__(
        self,
        tus_resumable: Annotated[str | None, Header(description="Always 1.0.0")] = None,
        upload_checksum: Annotated[
            str | None, Header(description="sha1, sha256 or md5, and the digest in base64")
        ] = None,
    ) -> None:
        self.tus_resumable = tus_resumable
        self.upload_checksum = upload_checksum


Headers = Annotated[UploadHeaders, Depends()]
TusResumable = Annotated[str | None, Header(description="Always 1.0.0")]


def add_tus(routes: APIRouter, uploads: ResumableUploads, *, idle_s: float) -> None:
    """Add the routes of resumable uploads; a client that sends nothing for `idle_s` is given up."""
    _add_creation(routes, uploads, idle_s)
    _add_appending(routes, uploads, idle_s)
    _add_upload(routes, uploads)


def _add_creation(routes: APIRouter, uploads: ResumableUploads, idle_s: float) -> None:
    @routes.options(
        PATH,
        status_code=204,
        tags=_TAGS,
        responses=_refusals(_401="Credentials were sent, and are not valid", _429="Too many requests"),
    )
    async def describe_uploads() -> Response:
        """What this server knows of tus; needs no login."""
        return Response(
            status_code=204,
            headers={
                "tus-version": tus_headers.VERSION,
                "tus-extension": tus_headers.EXTENSIONS,
                "tus-max-size": str(uploads.max_size_bytes),
                "tus-checksum-algorithm": ",".join(tus_headers.CHECKSUM_ALGORITHMS),
            },
        )

    @routes.post(
        PATH,
        status_code=201,
        tags=_TAGS,
        response_class=Response,
        responses=_refusals(
            _409="The quota would be exceeded",
            _412=_VERSION,
            _413="Upload-Length is more than Tus-Max-Size, or the body is longer than Upload-Length",
            _415=f"A body that is not {tus_headers.BYTES_TYPE}",
            _460="The body does not have the digest that Upload-Checksum says",
            _507="No storage space is left",
        ),
    )
    async def create_upload(
        user: CurrentUser,
        request: Request,
        headers: Headers,
        upload_length: Annotated[str | None, Header(description="The file's length in bytes")] = None,
        upload_metadata: Annotated[
            str, Header(description="filename, and what else is known of the image: keys with values in base64")
        ] = "",
        upload_defer_length: Annotated[str | None, Header(description="Not supported")] = None,
    ) -> Response:
        """Begin a resumable upload; `Location` is where its bytes go.

        The first of them may come along as application/offset+octet-stream.
        """
        tus_headers.require_version(headers.tus_resumable)
        length_bytes = tus_headers.upload_length(upload_length, upload_defer_length)
        known = tus_headers.metadata(upload_metadata)
        first = None
        if _brings_bytes(_content_type(request)):
            first = _part(request, 0, headers.upload_checksum, idle_s)
        elif await request.body():
            raise NotTusBytes(f"Send the file's bytes as {tus_headers.BYTES_TYPE}, or no body")
        new = NewUpload(length_bytes, known.filename, known.format, known.said, upload_metadata)
        begun = await uploads.create(user, new, first)
        told = _told(begun, with_offset=first is not None)
        return Response(status_code=201, headers={"location": f"{routes.prefix}{PATH}/{begun.upload_id}", **told})


def _add_appending(routes: APIRouter, uploads: ResumableUploads, idle_s: float) -> None:
    @routes.patch(
        PATH + "/{upload_id}",
        status_code=204,
        tags=_TAGS,
        responses=_refusals(
            _404=_NO_UPLOAD,
            _409="Upload-Offset is not the upload's; the answer's is",
            _410=_GONE,
            _412=_VERSION,
            _413="More bytes than Upload-Length",
            _415=f"Not {tus_headers.BYTES_TYPE}",
            _423="Another server process is writing to this upload; Retry-After tells when to try again",
            _460="The bytes do not have the digest that Upload-Checksum says; none of them counts",
            _507="No storage space is left",
        ),
    )
    async def append_to_upload(
        user: CurrentUser,
        upload_id: UUID,
        request: Request,
        headers: Headers,
        upload_offset: Annotated[str | None, Header(description="How many bytes are there already")] = None,
    ) -> Response:
        """Send bytes as application/offset+octet-stream; the last one begins the operation that `Link` names."""
        tus_headers.require_version(headers.tus_resumable)
        if not _brings_bytes(_content_type(request)):
            raise NotTusBytes(f"Send the bytes as {tus_headers.BYTES_TYPE}")
        part = _part(request, tus_headers.upload_offset(upload_offset), headers.upload_checksum, idle_s)
        try:
            now = await uploads.append(user, upload_id, part)
        except OffsetMismatch as error:
            response = problem_response(error, instance=request.url.path)
            response.headers["upload-offset"] = str(error.offset_bytes)
            return response
        told = _told(now)
        if now.operation_id is not None:
            told["link"] = f'<{routes.prefix}/operations/{now.operation_id}>; rel="monitor"'
        return Response(status_code=204, headers=told)


def _add_upload(routes: APIRouter, uploads: ResumableUploads) -> None:
    @routes.head(
        PATH + "/{upload_id}",
        tags=_TAGS,
        response_class=Response,
        responses=_refusals(_404=_NO_UPLOAD, _410=_GONE, _412=_VERSION),
    )
    async def look_at_upload(user: CurrentUser, upload_id: UUID, tus_resumable: TusResumable = None) -> Response:
        """How far the upload is; also once its file is whole, and when it has become an image."""
        tus_headers.require_version(tus_resumable)
        now = await uploads.progress(user, upload_id)
        headers = {"cache-control": "no-store", "upload-length": str(now.length_bytes), **_told(now)}
        if now.metadata_header:
            headers["upload-metadata"] = now.metadata_header
        return Response(headers=headers)

    @routes.delete(
        PATH + "/{upload_id}",
        status_code=204,
        tags=_TAGS,
        responses=_refusals(_404=_NO_UPLOAD, _409="It has become an image, or is protected", _412=_VERSION),
    )
    async def terminate_upload(user: CurrentUser, upload_id: UUID, tus_resumable: TusResumable = None) -> Response:
        """Give the upload up: what it had reserved is free again, its record and bytes are gone."""
        tus_headers.require_version(tus_resumable)
        await uploads.terminate(user, upload_id)
        return Response(status_code=204)


def _part(request: Request, offset_bytes: int, checksum: str | None, idle_s: float) -> Part:
    declared = request.headers.get("content-length")
    return Part(
        offset_bytes,
        int(declared) if declared is not None else None,
        tus_headers.checksum(checksum),
        chunks_of(request.stream(), idle_s=idle_s),
    )


async def chunks_of(pieces: AsyncIterator[bytes], *, idle_s: float) -> AsyncGenerator[bytearray, None]:
    """A body in chunks of about CHUNK_BYTES, or of what came within a second.

    Raises UploadInterrupted, once it gave all that had arrived, if the client left or sent nothing for `idle_s`.
    """
    loop = asyncio.get_running_loop()
    arrived, flush_at = bytearray(), loop.time() + _FLUSH_S
    interrupted: UploadInterrupted | None = None
    try:
        async with asyncio.timeout(idle_s) as idle:
            async for piece in pieces:
                arrived += piece
                if len(arrived) >= CHUNK_BYTES or loop.time() >= flush_at:
                    idle.reschedule(None)  # from here on it is we who keep the client waiting
                    yield arrived
                    arrived, flush_at = bytearray(), loop.time() + _FLUSH_S
                idle.reschedule(loop.time() + idle_s)
    except ClientDisconnect:
        interrupted = UploadInterrupted("The connection ended; ask for the Upload-Offset and go on from there")
    except TimeoutError:
        interrupted = UploadInterrupted(f"Nothing came for {idle_s:.0f} s; ask for the Upload-Offset and go on there")
    if arrived:
        yield arrived
    if interrupted is not None:
        raise interrupted


def _told(now: Progress, *, with_offset: bool = True) -> dict[str, str]:
    told = {"upload-offset": str(now.offset_bytes)} if with_offset else {}
    if now.expires_at is not None:
        told["upload-expires"] = format_datetime(now.expires_at.astimezone(UTC), usegmt=True)
    return told


def _refusals(**statuses: str) -> dict[int | str, dict[str, Any]]:
    return {int(status[1:]): {"description": text} for status, text in statuses.items()}


def _is_ours(path: str) -> bool:
    return path == _PUBLIC_PATH or path.startswith(_PUBLIC_PATH + "/")


def _content_type(request: Request) -> bytes | None:
    return header(request.scope, b"content-type")


def _brings_bytes(content_type: bytes | None) -> bool:
    return (
        content_type is not None and content_type.partition(b";")[0].strip().lower() == tus_headers.BYTES_TYPE.encode()
    )
