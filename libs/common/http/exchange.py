"""One answer as it arrives: httptools' callbacks in, a head and pieces of body out, every size bounded."""

import asyncio
from collections import deque

import httptools

from libs.common.http.errors import BodyTooLarge, ExchangeFailed, OutboundError, Reason
from libs.common.http.limits import Limits

_NO_CONTENT = frozenset({204, 304})
_SWITCHING = 101
_FIRST_FINAL = 200


class Exchange:
    """Parses one HTTP/1.1 response (RFC 9112). `error`, once set, is final and nothing more is buffered."""

    def __init__(self, *, body_expected: bool, limits: Limits) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.content_length: int | None = None
        self.started = self.head_complete = self.complete = self.keep_alive = False
        self.error: OutboundError | None = None
        self.buffer: deque[bytes] = deque()
        self.buffered_bytes = self.received_bytes = 0
        self._body_expected = body_expected
        self._limits = limits
        self._unproductive_bytes = 0  # of head, or of framing and trailers since the last body byte
        self._waiter: asyncio.Future[bool] | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    async def wait(self, until: float) -> None:
        """Return when something arrived, or at loop time `until`."""
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        timer = loop.call_at(until, self._wake)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def take(self) -> bytes:
        """The oldest piece of body; the buffer must not be empty."""
        piece = self.buffer.popleft()
        self.buffered_bytes -= len(piece)
        return piece

    # -- from the transport

    def feed(self, data: bytes) -> None:
        self.started = True
        view = memoryview(data)
        while view and self.error is None:
            if self.complete:
                self._fail_length()
                break
            view = view[self._feed(view) :]
        self._wake()

    def _feed(self, view: memoryview) -> int:
        """Parse a piece small enough that neither a head nor framing outgrows its cap unseen."""
        room = self._limits.max_header_bytes - self._unproductive_bytes
        if room <= 0:
            self.fail(ExchangeFailed(Reason.HEADERS_TOO_LARGE, "The server's headers are too large."))
            return 0
        piece = view if self.head_complete else view[:room]
        progress_before = (self.received_bytes, self.head_complete)
        try:
            if self._parser is not None:
                self._parser.feed_data(piece)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self.complete:
                self._fail_length()
            else:
                self.fail(ExchangeFailed(Reason.PROTOCOL_ERROR, "The server's answer is not valid HTTP/1.1."))
        if (self.received_bytes, self.head_complete) != progress_before:
            self._unproductive_bytes = 0
        else:
            self._unproductive_bytes += len(piece)
        return len(piece)

    def end(self) -> None:
        """The connection is gone: a body without a declared length is complete now, anything else was cut."""
        if self.complete or self.error is not None:
            return
        if not self.head_complete:
            self.fail(ExchangeFailed(Reason.CONNECTION_LOST, "The server closed the connection without an answer."))
        elif self.content_length is not None:
            self._fail_length()
        elif "transfer-encoding" in self.headers:
            self.fail(ExchangeFailed(Reason.BODY_TRUNCATED, "The server closed the connection within the body."))
        else:
            self._finish(keep_alive=False)
        self._wake()

    def fail(self, error: OutboundError) -> None:
        if self.error is None:
            self.error = error
            self.keep_alive = False
            self.buffer.clear()
            self.buffered_bytes = 0
            self._wake()

    def _fail_length(self) -> None:
        self.fail(ExchangeFailed(Reason.LENGTH_MISMATCH, "The body's length differs from its Content-Length."))

    def _finish(self, *, keep_alive: bool) -> None:
        self.complete = True
        self.keep_alive = keep_alive

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def release(self) -> None:
        """Break the cycle with the parser, so that thousands of exchanges need no garbage collection."""
        self._parser = None

    # -- from the parser

    def on_message_begin(self) -> None:
        if self.complete:
            self._fail_length()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_complete:
            return  # trailers (RFC 9110, 6.5) mean nothing here
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1").strip(" \t")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101 - the parser is what calls
        if self.head_complete:
            return
        self.status = self._parser.get_status_code()
        if self.status < _FIRST_FINAL:
            if self.status == _SWITCHING:
                self.fail(ExchangeFailed(Reason.PROTOCOL_ERROR, "The server switched protocols unasked."))
            self.headers.clear()  # an interim answer; the final one follows
            return
        self.head_complete = True
        self._read_framing()

    def _read_framing(self) -> None:
        """Content-Length and Transfer-Encoding (RFC 9112, 6); llhttp refuses both at once and unequal lengths."""
        if not self._body_expected:
            self._finish(keep_alive=False)  # what follows a HEAD's answer cannot be told from a body
            return
        if self.headers.get("transfer-encoding", "chunked").lower() != "chunked":
            self.fail(ExchangeFailed(Reason.ENCODING_REFUSED, "The server used an unknown Transfer-Encoding."))
        declared = self.headers.get("content-length")
        if declared is None or self.status in _NO_CONTENT:
            return
        if not (declared.isascii() and declared.isdigit() and len(declared) < 20):  # noqa: PLR2004 - 64 bits
            self.fail(ExchangeFailed(Reason.PROTOCOL_ERROR, "The server's Content-Length is not a number."))
            return
        self.content_length = int(declared)
        if self.content_length > self._limits.max_bytes:
            self._fail_size()

    def on_body(self, data: bytes) -> None:
        if self.error is not None or self.complete:
            return
        self.received_bytes += len(data)
        if self.received_bytes > self._limits.max_bytes:
            self._fail_size()
            return
        self.buffer.append(data)
        self.buffered_bytes += len(data)

    def on_message_complete(self) -> None:
        if self.head_complete and not self.complete and self._parser is not None:
            self._finish(keep_alive=self.error is None and self._parser.should_keep_alive())

    def _fail_size(self) -> None:
        self.fail(BodyTooLarge(Reason.BODY_TOO_LARGE, f"The body is larger than {self._limits.max_bytes} bytes."))
