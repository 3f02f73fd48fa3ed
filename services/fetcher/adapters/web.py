"""Downloads over the guarded client: hashed while they stream, in memory while small, resumed where they broke."""

import asyncio
import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from libs.common.http import GuardedClient, OutboundError, Response
from libs.common.http.errors import Reason
from services.fetcher.adapters.partials import LEAST_BYTES, Partial, Partials
from services.fetcher.adapters.robots import RobotsFiles
from services.fetcher.ports import Body, Download, DownloadFailed, NotModified, Wish

_OK = 200
_PARTIAL_CONTENT = 206
_NOT_MODIFIED = 304
_RANGE_NOT_SATISFIABLE = 416
_MEMORY_BYTES = 2_000_000
_MAX_VALIDATOR = 200
_ACCEPT = "image/avif,image/webp,image/png,image/jpeg,image/gif,image/*;q=0.8,*/*;q=0.5"
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_BROKEN_OFF = frozenset(
    {Reason.CONNECTION_LOST, Reason.LENGTH_MISMATCH, Reason.BODY_TRUNCATED, Reason.DEADLINE, Reason.RATE_TOO_LOW}
)


class HttpDownloader:
    """Implements `ports.Downloader`; larger bodies go to temporary files in `spool()`, broken ones to `partials()`."""

    def __init__(
        self,
        client: GuardedClient,
        *,
        spool: Callable[[], Path],
        partials: Callable[[], Path],
        max_bytes: int,
        robots: RobotsFiles,
    ) -> None:
        self._client = client
        self._spool = spool
        self._max_bytes = max_bytes
        self._robots = robots
        self._partials = Partials(partials, spool)

    async def fetch(self, url: str, wish: Wish) -> Download | NotModified:
        if wish.robots:
            await self._robots.check(url)
        partial = await asyncio.to_thread(self._partials.take, url) if self._partials.has(url) else None
        try:
            return await self._fetch(url, wish, partial)
        except OutboundError as error:
            raise DownloadFailed(error.reason.value, error.detail) from error
        finally:
            if partial is not None:
                await asyncio.to_thread(partial.file.unlink, missing_ok=True)

    async def _fetch(self, url: str, wish: Wish, partial: Partial | None) -> Download | NotModified:
        async with self._client.stream("GET", url, headers=_headers(wish, partial)) as response:
            if response.status == _NOT_MODIFIED and partial is None and (wish.etag or wish.last_modified):
                return NotModified(response.url)
            received = _Received(self._spool, self._max_bytes)
            if response.status == _PARTIAL_CONTENT and partial is not None:
                received.go_on(partial, response)
            elif response.status != _OK:
                raise self._failed(response)
            body = await self._read(url, response, received)
            return Download(
                final_url=response.url,
                http_status=_OK,
                body=body,
                etag=_validator(response.headers.get("etag")),
                last_modified=_validator(response.headers.get("last-modified")),
            )

    async def _read(self, url: str, response: Response, received: "_Received") -> Body:
        try:
            async for piece in response.chunks():
                await received.add(piece)
        except (OutboundError, asyncio.CancelledError) as error:  # cancelled: paused, or the process stops
            broken_off = not isinstance(error, OutboundError) or error.reason in _BROKEN_OFF
            if broken_off and received.size_bytes < received.due_bytes(response):
                await self._keep(url, response, received)
            received.discard()
            raise
        except BaseException:
            received.discard()
            raise
        return await received.body()

    async def _keep(self, url: str, response: Response, received: "_Received") -> None:
        """Keep what came for the next attempt, if the server can go on where it stopped."""
        validator = strong_validator(response.headers.get("etag"), response.headers.get("last-modified"))
        validator = validator or received.validator
        resumable = response.headers.get("accept-ranges", "").lower() == "bytes" or response.status == _PARTIAL_CONTENT
        if (
            validator
            and resumable
            and received.size_bytes >= LEAST_BYTES
            and "content-encoding" not in response.headers
        ):
            await asyncio.to_thread(self._partials.keep, url, await received.partial(validator))

    def _failed(self, response: Response) -> DownloadFailed:
        reason = "range-refused" if response.status == _RANGE_NOT_SATISFIABLE else f"http-{response.status}"
        return DownloadFailed(
            reason,
            f"The server answered {response.status}.",
            final_url=response.url,
            http_status=response.status,
            retry_after_s=retry_after_s(response.headers.get("retry-after")),
        )


class _Received:
    """A body as it grows: in memory, then in a file of the spool."""

    def __init__(self, spool: Callable[[], Path], max_bytes: int) -> None:
        self._spool = spool
        self._max_bytes = max_bytes
        self._digest: Any = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._pending_bytes = 0
        self._file: Path | None = None
        self._before_bytes = 0
        self.validator: str | None = None
        self.size_bytes = 0

    def go_on(self, partial: Partial, response: Response) -> None:
        """Begin with what came before; raises DownloadFailed if the answer does not begin where that ends."""
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is None or int(found[1]) != partial.size_bytes:
            raise DownloadFailed("protocol-error", "The server answered with another range than it was asked for.")
        self._file = partial.file.rename(partial.file.with_name(f"{partial.file.name}+"))
        self._digest = partial.digest
        self.validator = partial.validator
        self._before_bytes = self.size_bytes = partial.size_bytes

    def due_bytes(self, response: Response) -> int:
        """How long the body claims to be."""
        return self._before_bytes + (response.content_length or 2**62)

    async def add(self, piece: bytes) -> None:
        self._digest.update(piece)
        self.size_bytes += len(piece)
        if self.size_bytes > self._max_bytes:
            raise DownloadFailed("body-too-large", f"The body is larger than {self._max_bytes} bytes.")
        self._pieces.append(piece)
        self._pending_bytes += len(piece)
        if self._file is None and self.size_bytes > _MEMORY_BYTES:
            self._make_file()
        if self._file is not None and self._pending_bytes > _MEMORY_BYTES // 2:
            await self._flush(self._file)

    async def body(self) -> Body:
        if self._file is None:
            return Body(b"".join(self._pieces), None, self.size_bytes, self._digest.hexdigest())
        await self._flush(self._file)
        return Body(None, self._file, self.size_bytes, self._digest.hexdigest())

    async def partial(self, validator: str) -> Partial:
        """Hand the file over."""
        file = self._file or self._make_file()
        await self._flush(file)
        self._file = None
        return Partial(file, self.size_bytes, self._digest, validator)

    def discard(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _make_file(self) -> Path:
        handle, name = tempfile.mkstemp(dir=self._spool(), prefix="body-")
        os.close(handle)
        self._file = Path(name)
        return self._file

    async def _flush(self, file: Path) -> None:
        await asyncio.to_thread(_append, file, self._pieces)
        self._pending_bytes = 0


def _headers(wish: Wish, partial: Partial | None) -> dict[str, str]:
    """RFC 9110, 13 and 14: the rest of what was begun, or the whole unless it is still what is stored."""
    headers = {"accept": _ACCEPT}
    if partial is not None:
        return {**headers, "range": f"bytes={partial.size_bytes}-", "if-range": partial.validator}
    if wish.etag:
        headers["if-none-match"] = wish.etag
    if wish.last_modified:
        headers["if-modified-since"] = wish.last_modified
    return headers


def strong_validator(etag: str | None, last_modified: str | None) -> str | None:
    """What If-Range may carry (RFC 9110, 13.1.5): a strong ETag, else the date."""
    if etag is not None:
        return _validator(etag) if etag.startswith('"') else None
    return _validator(last_modified)


def retry_after_s(value: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: a number or a date); None if it says nothing."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(min(int(value[:9]), 86_400))
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())


def _validator(value: str | None) -> str | None:
    """An ETag or Last-Modified that can be sent back as it is."""
    return value if value and len(value) <= _MAX_VALIDATOR and value.isascii() and value.isprintable() else None


def _append(file: Path, pieces: list[bytes]) -> None:
    with file.open("ab") as target:
        target.writelines(pieces)
    pieces.clear()
