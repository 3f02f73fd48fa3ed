"""Answers with an image's file, whole or in part: ranges, validators, digests (RFC 9110, 9530)."""

import base64
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from libs.common.problems import problem_response
from services.images.adapters.links import content_disposition, file_name
from services.images.errors import RangeNotSatisfiable
from services.images.models import Image
from services.images.ports import BlobReader
from services.images.service import Download

_MEDIA_TYPE = "application/octet-stream"
_SINGLE_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*")


@dataclass(frozen=True, slots=True)
class Span:
    """Which bytes are asked for."""

    start: int
    length: int


def requested_span(header: str | None, size_bytes: int) -> Span | None:
    """Read a Range header (RFC 9110, 14.2); None means the whole file.

    Only a single byte range is honoured: other units, several ranges and nonsense are ignored, as the RFC allows, so
    that a header with a hundred thousand ranges costs nothing. Raises RangeNotSatisfiable.
    """
    found = _SINGLE_RANGE.fullmatch(header) if header is not None else None
    if found is None or (not found[1] and not found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), size_bytes)
        start = size_bytes - length
    else:
        start = int(found[1])
        last = min(int(found[2]), size_bytes - 1) if found[2] else size_bytes - 1
        if found[2] and int(found[2]) < start:
            return None
        length = last - start + 1
    if start >= size_bytes or length <= 0:
        raise RangeNotSatisfiable(f"The file has {size_bytes} bytes")
    return Span(start, length)


def _digests(image: Image) -> str:
    """A digest field's value (RFC 9530, 2)."""
    pairs = (("sha-256", image.sha256 or ""), ("sha-512", image.sha512 or ""))
    return ", ".join(f"{name}=:{base64.b64encode(bytes.fromhex(value)).decode()}:" for name, value in pairs)


def _matches(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names the file; its comparison is weak (RFC 9110, 13.1.2)."""
    if header is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return etag in tags or "*" in tags


class _FileResponse(StreamingResponse):
    """Streams a file and closes it, whatever becomes of the client."""

    def __init__(self, file: BlobReader, part: Span, **options: Any) -> None:
        self._file = file
        self._pieces = file.read(part.start, part.length)
        super().__init__(self._pieces, media_type=_MEDIA_TYPE, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()
            await self._file.close()


async def answer(request: Request, download: Download, *, count: Callable[[], Awaitable[None]]) -> Response:
    """Stream the file, the part of it that is asked for, or say that it is unchanged.

    `count` is called when a GET gets the file's beginning, so that resuming a download is not another one.
    """
    image = download.image
    etag = f'"{image.sha256}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "repr-digest": _digests(image),
        "content-disposition": content_disposition(file_name(image.name, image.format)),
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
    }
    if _matches(request.headers.get("if-none-match"), etag):
        await download.file.close()
        return Response(status_code=304, headers=headers)
    if_range = request.headers.get("if-range")
    try:
        span = requested_span(request.headers.get("range"), image.size_bytes) if if_range in (None, etag) else None
    except RangeNotSatisfiable as error:
        await download.file.close()
        response = problem_response(error, instance=request.url.path)
        response.headers["content-range"] = f"bytes */{image.size_bytes}"
        return response
    part = span or Span(0, image.size_bytes)
    headers["content-length"] = str(part.length)
    if span is None:
        headers["content-digest"] = headers["repr-digest"]
    else:
        headers["content-range"] = f"bytes {part.start}-{part.start + part.length - 1}/{image.size_bytes}"
    status = 200 if span is None else 206
    if request.method == "HEAD":
        await download.file.close()
        return Response(status_code=status, headers=headers, media_type=_MEDIA_TYPE)
    if part.start == 0:
        await count()
    return _FileResponse(download.file, part, status_code=status, headers=headers)
