"""Published files on the web, fetched through the guarded client: what a server may answer, and what it means."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from libs.common.http import (
    AddressPolicy,
    AddressRefused,
    BodyTooLarge,
    ExchangeFailed,
    GuardedClient,
    Limits,
    Reason,
    Response,
    UpstreamTooSlow,
    parse,
)
from libs.common.settings import Network
from services.images.domain import Compression, human_size
from services.images.errors import FileTooLarge, SourceChanged, SourceInterrupted, SourceRefused
from services.images.ports import SourceFile

_DEADLINE_S = 12 * 3600.0
_RATE_WINDOW_S = 30.0
_LONGEST_WAIT_S = 300.0
_NOT_NOW = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request may succeed (RFC 9110, 15; RFC 8470; RFC 6585)."""
_BROKEN_OFF = frozenset(
    {
        Reason.NAME_NOT_RESOLVED,
        Reason.CONNECT_FAILED,
        Reason.TLS_FAILED,
        Reason.CONNECTION_LOST,
        Reason.LENGTH_MISMATCH,
        Reason.BODY_TRUNCATED,
    }
)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)")
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{0,200}"')
_MAX_TAG = 256
_ENCODING_OF = {"gzip": Compression.GZIP, "x-gzip": Compression.GZIP, "zstd": Compression.ZSTD, "xz": Compression.XZ}


class HttpSource:
    """One client for all downloads; `networks` may be reached besides the public internet."""

    def __init__(self, networks: Collection[Network], *, max_file_size: int, min_rate_bytes_per_s: float) -> None:
        self._policy = AddressPolicy(networks)
        self._max_file_size = max_file_size
        wire_bytes = max_file_size + max_file_size // 64 + (1 << 20)  # what cannot be packed grows a little by packing
        limits = Limits(
            total_deadline_s=_DEADLINE_S,
            max_bytes=wire_bytes,
            max_decoded_bytes=wire_bytes,
            min_rate_bytes_per_s=min_rate_bytes_per_s,
            rate_window_s=_RATE_WINDOW_S,
        )
        self._client = GuardedClient(self._policy, limits=limits, user_agent="Telar-Images")

    async def close(self) -> None:
        await self._client.aclose()

    def check(self, url: str) -> str:
        parsed = parse(url)
        reason = None if parsed.literal is None else self._policy.check(parsed.literal)
        if reason is not None:
            raise AddressRefused(reason, "The URL leads to an address that is not on the public internet.")
        return str(parsed)

    @asynccontextmanager
    async def open(
        self, url: str, *, packed: Compression | None, start: int = 0, validator: str | None = None
    ) -> AsyncIterator[SourceFile]:
        headers = {"range": f"bytes={start}-", "if-range": validator} if start and validator else {}
        with self._told():
            async with self._client.stream("GET", url, headers=headers) as response:
                yield _HttpFile(response, packed, asked_from=start if headers else 0, validator=validator)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell the client's failures in the service's words; those that are final as they are pass through."""
        try:
            yield
        except BodyTooLarge as error:
            raise FileTooLarge(f"An image file may have at most {human_size(self._max_file_size)}") from error
        except UpstreamTooSlow as error:
            raise SourceInterrupted(f"The source is too slow: {error.detail}") from error
        except ExchangeFailed as error:
            if error.reason not in _BROKEN_OFF:
                raise
            raise SourceInterrupted(f"The source broke off: {error.detail}") from error


class _HttpFile:
    """An answer that brings the file, whole or from `start` on."""

    def __init__(
        self, response: Response, packed: Compression | None, *, asked_from: int, validator: str | None
    ) -> None:
        self._response = response
        headers = response.headers
        encoding = headers.get("content-encoding", "").strip().lower()
        # Some servers declare a stored .gz file as an encoding of what is in it; it is the file that is wanted.
        self._decoded = encoding not in ("", "identity") and _ENCODING_OF.get(encoding) != packed
        self.start, total = _span(response, asked_from)
        self.length = None if self._decoded else total
        self.final_url = response.url.partition("?")[0]
        self.etag = headers.get("etag", "")[:_MAX_TAG] or None
        self.last_modified = headers.get("last-modified", "")[:_MAX_TAG] or None
        self.validator = None if self._decoded else _validator(response)
        if self.start and self.validator not in (validator, None):
            raise SourceChanged("The file at the source has changed; the download begins anew", retry_after_s=1)
        if self.start:
            self.validator = validator

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        async for chunk in self._response.chunks(decoded=self._decoded):
            yield chunk


def _span(response: Response, asked_from: int) -> tuple[int, int | None]:
    """Where the answer's body begins in the file, and the file's length; raises unless it brings the file."""
    if response.status == HTTPStatus.OK:
        return 0, response.content_length
    if response.status == HTTPStatus.PARTIAL_CONTENT and asked_from:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is not None and int(found[1]) == asked_from:
            return asked_from, None if found[2] == "*" else int(found[2])
    if asked_from and response.status in (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        raise SourceChanged("The source does not go on where the download was; it begins anew", retry_after_s=1)
    answer = f"The source answered {_status(response.status)}"
    if response.status in _NOT_NOW:
        raise SourceInterrupted(answer, retry_after_s=_retry_after_s(response.headers.get("retry-after")))
    raise SourceRefused(f"{answer} instead of the file; look whether the URL is right and public")


def _validator(response: Response) -> str | None:
    """A strong validator to go on with later (RFC 9110, 8.8.2.2 and 13.1.5)."""
    headers = response.headers
    if response.status == HTTPStatus.OK and "bytes" not in headers.get("accept-ranges", ""):
        return None
    etag, modified = headers.get("etag"), headers.get("last-modified")
    if etag is not None:
        return etag if _STRONG_ETAG.fullmatch(etag) else None
    changed_at, told_at = _moment(modified), _moment(headers.get("date"))
    if changed_at is None or told_at is None or told_at - changed_at < timedelta(seconds=1):
        return None
    return modified


def _moment(text: str | None) -> datetime | None:
    """An HTTP date; None if it is none, or none that could be sent back as it came."""
    try:
        return parsedate_to_datetime(text) if text is not None and text.isascii() and text.isprintable() else None
    except ValueError:
        return None


def _retry_after_s(text: str | None) -> float | None:
    if text is None or not text.isdecimal() or len(text) > 6:  # noqa: PLR2004 - eleven days; more is no number to wait
        return None
    return min(_LONGEST_WAIT_S, float(text))


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
