"""The gateway's HTTP/1.1 protocol: uvicorn's httptools one, strict where that is lenient."""

import asyncio
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools
import structlog
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.server.cycle import AnswerCycle
from gateway.server.guard import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_NAME_BYTES,
    NOTED,
    RefusedRequestError,
    check_line,
    check_noted,
    check_size,
    origin_form,
)

_HEAD_TIMEOUT_S = 15.0
_STALL_TIMEOUT_S = 60.0
_LINGER_S = 1.0

_log = structlog.get_logger()


class GatewayHttpProtocol(HttpToolsProtocol):
    """Reads one client's requests.

    It refuses ambiguous ones, drops trailers (uvicorn adds them to the head's fields), closes after an answer that came
    before the whole request, and bounds heads and the time for which a peer may stall. One timer per connection
    watches all of that; uvicorn starts one per request.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self._in_head = False
        self._in_message = False
        self._deaf = False
        self._keep_alive_after = False
        self._fed_bytes = 0  # since the last progress: a piece of the body, or a message's end
        self._noted: list[tuple[bytes, bytes]] = []
        self._refusal: RefusedRequestError | None = None
        self._head_since = self._last_data = self._idle_since = self.loop.time()
        self._idle_limit_s = _HEAD_TIMEOUT_S
        self._watchdog: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # The transport's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._watchdog = self.loop.call_later(_HEAD_TIMEOUT_S, self._check_on_peer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._fed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self._stop_timers()
                self.handle_websocket_upgrade()
            else:
                self._ignore_upgrade()
        except httptools.HttpParserError as error:
            if not self._deaf:
                self._refuse(self._refusal or RefusedRequestError(f"This is not HTTP/1.1: {error}."))
        else:
            if self._in_message:
                self._after_part()

    def pause_writing(self) -> None:
        """A client that stops reading holds a buffer and an upstream connection; it may do so for a while only."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(_STALL_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # The parser's callbacks

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._noted = []
        self._in_head = self._in_message = True
        self._head_since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        name = name.lower()
        self.headers.append((name, value))
        if name in NOTED:
            self._noted.append((name, value))
        elif len(name) > MAX_NAME_BYTES:
            self._reject(
                RefusedRequestError("A header field's name is too long.", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            )

    def on_headers_complete(self) -> None:
        try:
            has_body = self._read_head()
        except RefusedRequestError as refusal:
            self._reject(refusal)
        self._in_head = False
        if self.parser.should_upgrade() and self._should_upgrade():
            return
        earlier = self.cycle
        keep_alive = self.scope["http_version"] == "1.1" and self.parser.should_keep_alive()
        # An answer that comes before the whole body must be the last one on this connection.
        self._keep_alive_after = has_body and keep_alive
        self.cycle = AnswerCycle(
            self.scope,
            self.transport,
            self.flow,
            self.server_state.default_headers,
            self.on_response_complete,
            keep_alive=keep_alive and not has_body,
            expects_continue=has_body and any(name == b"expect" for name, _ in self._noted),
        )
        if earlier is None or earlier.response_complete:  # type: ignore[redundant-expr]  # None at first
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        self._fed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        self._fed_bytes = 0
        if self.parser.should_upgrade():
            return
        cycle = self.cycle
        if self._keep_alive_after and not cycle.response_started:
            cycle.keep_alive = True
        self._keep_alive_after = False
        self._deaf = not cycle.keep_alive
        cycle.more_body = False
        cycle.message_event.set()

    def _read_head(self) -> bool:
        """Check the head and make the scope of it; whether a body follows."""
        parser = self.parser
        method, version = parser.get_method().decode("ascii"), parser.get_http_version()
        if self._fed_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_FIELDS:
            check_size(self.url, self.headers)
        check_line(method, version)
        host, has_body = check_noted(self._noted, version)
        self.url = origin_form(self.url, host)
        if parser.should_upgrade() and (has_body or method != "GET"):
            raise RefusedRequestError("A request to switch protocols must be a GET without a body.")
        raw_path, _, query = self.url.partition(b"?")
        try:
            path = raw_path.decode("ascii")
        except UnicodeDecodeError:
            raise RefusedRequestError("The request target holds bytes that must be percent-encoded.") from None
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "method": method,
            "root_path": "",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": self.app_state.copy(),
        }
        return has_body

    # What becomes of a request

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        task = self.loop.create_task(cycle.run_asgi(app))
        if isinstance(cycle, AnswerCycle):
            cycle.tasks, cycle.task = self.tasks, task
        self.tasks.add(task)

    def on_response_complete(self, *, keep_alive: bool = True) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if not keep_alive:
            self._close()
            return
        self._idle_since = self.loop.time()
        self._idle_limit_s = self.timeout_keep_alive
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        self._keep_alive_after = False
        super().shutdown()

    # The watch over the peer

    def _after_part(self) -> None:
        """After input that ended within a message: bound what makes no progress."""
        self._last_data = self.loop.time()
        # Trailers and chunk extensions are read without a callback; they must end somewhere.
        if self._fed_bytes > MAX_HEAD_BYTES:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if self._in_head else HTTPStatus.BAD_REQUEST
            self._refuse(RefusedRequestError("The head, a chunk extension or the trailers are too long.", status))

    def _check_on_peer(self) -> None:
        if self._deaf or self.transport.is_closing():
            return
        now = self.loop.time()
        left_s = _HEAD_TIMEOUT_S
        if self._in_head:
            left_s = self._head_since + _HEAD_TIMEOUT_S - now
        elif self._in_message:
            # While reading is paused it is not the client that is slow.
            left_s = _STALL_TIMEOUT_S if self.flow.read_paused else self._last_data + _STALL_TIMEOUT_S - now
        elif self._answered():
            left_s = self._idle_since + self._idle_limit_s - now
        if left_s > 0:
            self._watchdog = self.loop.call_later(min(left_s, _HEAD_TIMEOUT_S), self._check_on_peer)
        elif self._in_message:
            self._refuse(RefusedRequestError("The rest of the request did not arrive.", HTTPStatus.REQUEST_TIMEOUT))
        else:
            self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._watchdog, self._write_timer):
            if timer is not None:
                timer.cancel()

    # Refusals

    def _reject(self, refusal: RefusedRequestError) -> None:
        """From within a callback: the parser swallows the exception and raises its own."""
        self._refusal = refusal
        raise refusal

    def _refuse(self, refusal: RefusedRequestError) -> None:
        self._deaf = True
        _log.info("request_refused", reason=refusal.detail, client=self.client[0] if self.client else None)
        if not self._answered():
            if self._in_head:
                # An earlier request is still being answered: that answer is the last.
                self.cycle.keep_alive = False
                return
            if self.pipeline or self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(refusal.answer())
        self._close()

    def _close(self) -> None:
        """End the connection after what has been written."""
        self._deaf = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            # A close with unread input resets the connection, and the client might lose the answer.
            self.transport.write_eof()
            self.loop.call_later(_LINGER_S, self.transport.close)
        else:
            self.transport.close()

    def _answered(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is None or cycle.response_complete

    def _ignore_upgrade(self) -> None:
        """Answer as if no upgrade had been asked for; the parser does not know where the next request would begin."""
        self._deaf = True
        self._in_message = False
        self.cycle.keep_alive = False
        self.cycle.more_body = False
        self.cycle.message_event.set()
