"""One request of a client and the answer to it: the ASGI side of a connection."""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from uvicorn._types import ASGI3Application, HTTPScope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_BODYLESS = frozenset({204, 304})
_FAILED = b'{"type":"/problems/internal","title":"Something went wrong on our side","status":500}'

_log = structlog.get_logger()


class Signal:
    """What the cycle needs of asyncio.Event, for its one waiter, at a fifth of the price."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> None:
        if not self._is_set:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class AnswerCycle(RequestResponseCycle):
    """uvicorn's cycle with a leaner `send`: the head goes out with the first of the body, as ASGI has it, in one write.

    An answer that its application leaves incomplete resets the connection, so that it cannot be taken for a whole one.
    """

    # Defaults live on the class: creating a cycle is on the path of every request.
    disconnected = False
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding: bool | None = None
    expected_content_length = 0
    access_log = False
    _head: bytes = b""
    _until_close = False
    task: asyncio.Task[None] | None = None
    tasks: set[asyncio.Task[None]]

    def __init__(  # without the base's: it only sets what is set here and above
        self,
        scope: HTTPScope,
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: list[tuple[bytes, bytes]],
        ended: Callable[..., None],
        *,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self.scope = scope
        self.transport = transport
        self.flow = flow
        self.default_headers = default_headers
        self.ended = ended
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expects_continue
        self.message_event = Signal()  # type: ignore[assignment]  # what the base needs of an event
        self.body = bytearray()

    async def run_asgi(self, app: ASGI3Application) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:  # noqa: BLE001  # the last line of defence: nothing above would answer
            _log.exception("application_failed")
        finally:
            if not self.response_complete and not self.disconnected:
                if self.response_started:
                    self.transport.abort()
                else:
                    await self.send_500_response()
            if self.task is not None:
                self.tasks.discard(self.task)

    async def send_500_response(self) -> None:
        self.keep_alive = False
        length = str(len(_FAILED)).encode()
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", length)]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": _FAILED, "more_body": False})

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_complete:
            raise RuntimeError(f"{message['type']} after the answer was complete")
        if message["type"] == "http.response.body" and self.response_started:
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
        elif message["type"] == "http.response.start" and not self.response_started:
            self._head = self._start(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"{message['type']} out of turn")

    def _start(self, status: int, fields: Any) -> bytes:
        self.response_started = True
        self.waiting_for_100_continue = False
        out = [STATUS_LINE[status]]
        for name, value in self.default_headers:
            out += (name, b": ", value, b"\r\n")
        lines = 1 + len(self.default_headers)
        for name, value in fields:
            out += (name, b": ", value, b"\r\n")
            lines += 1
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
        if not self.keep_alive:
            out.append(b"connection: close\r\n")
            lines += 1
        if self.scope["method"] == "HEAD" or status in _BODYLESS:
            self.expected_content_length = 0
            self.chunked_encoding = False
        elif self.chunked_encoding is None:
            # HTTP/1.0 knows no chunks: there the end of the connection ends the body.
            self._until_close = self.scope["http_version"] == "1.0"
            self.chunked_encoding = not self._until_close
            if self.chunked_encoding:
                out.append(b"transfer-encoding: chunked\r\n")
                lines += 1
        out.append(b"\r\n")
        head = b"".join(out)
        if head.count(b"\n") != lines + 1 or head.count(b"\r") != lines + 1 or b"\0" in head:
            self.response_started = False
            raise RuntimeError("a header field of the answer holds a line break or NUL")
        return head

    def _send_body(self, body: bytes, *, more: bool) -> None:
        head, self._head = self._head, b""
        if self.scope["method"] == "HEAD":
            body = b""
        elif self.chunked_encoding:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                body += b"0\r\n\r\n"
        elif not self._until_close:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (self.expected_content_length and not more):
                raise RuntimeError("the answer's body does not have the length that its head announced")
        if head or body:
            self.transport.write(head + body if head else body)
        if not more:
            self.response_complete = True
            self.message_event.set()
            self.ended(keep_alive=self.keep_alive)
