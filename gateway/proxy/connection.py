"""One keep-alive HTTP/1.1 connection to a service (RFC 9112), and the exchange that is under way on it."""

import asyncio
from collections import deque
from typing import cast

import httptools
from starlette.types import Receive

from gateway.proxy.headers import Fields

_HIGH_WATER_BYTES = 256 * 1024
_MOST_FIELDS = 256
_FINAL = 200
_SWITCHING = 101


class ConnectionLostError(Exception):
    """The upstream closed the connection before its answer was complete."""


class AnswerUnreadableError(Exception):
    """The upstream's answer is not HTTP/1.1 as RFC 9112 has it."""


class ClientGoneError(Exception):
    """The client closed its connection; there is nobody to answer."""


class Exchange:
    """One request and its answer: what the connection has read of it and the relay has not yet taken."""

    # Defaults live on the class: most exchanges never change most of them.
    status = 0
    fields: Fields = []  # noqa: RUF012  # replaced as a whole, never changed in place
    buffered_bytes = 0
    touched = False
    continued = False
    answered = False
    complete = False
    request_received = True
    request_sent = True
    discards = False
    failure: Exception | None = None
    waiter: asyncio.Future[None] | None = None
    watcher: asyncio.Task[None] | None = None

    def __init__(
        self, connection: "UpstreamConnection", receive: Receive, method: str, session: str, tick: int
    ) -> None:
        self.connection = connection
        self.receive = receive
        self.method = method
        self.is_head = method == "HEAD"
        self.session = session
        self.since_tick = tick
        self.chunks: list[bytes] = []

    def progress(self) -> asyncio.Future[None]:
        """Done when the upstream sent something more, or the exchange failed. Only the relay's own task awaits it."""
        self.waiter = self.connection.new_future()
        return self.waiter

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def take(self) -> bytes:
        """What has arrived of the body since the last call; reading goes on if it had been paused."""
        chunks = self.chunks
        if not chunks:
            return b""
        self.chunks = []
        if self.buffered_bytes > _HIGH_WATER_BYTES:
            self.connection.resume_reading()
        self.buffered_bytes = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def fail(self, failure: Exception) -> None:
        """End the exchange, unless its answer is already complete; the connection is of no more use."""
        if self.complete or self.failure is not None:
            return
        self.failure = failure
        self.connection.abort()
        self.wake()

    @property
    def awaits_upstream(self) -> bool:
        """Whether it is the upstream's turn: to answer, or to read more of the request."""
        return not self.answered and (self.request_sent or self.connection.write_paused)

    async def watch(self) -> None:
        """Fail the exchange as soon as the client is gone."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.fail(ClientGoneError())


class UpstreamConnection(asyncio.Protocol):
    """Writes one request at a time and reads its answer, with back-pressure both ways. Not for pipelining."""

    def __init__(self, host_line: bytes, pool: "deque[UpstreamConnection]") -> None:
        self.host_line = host_line
        self.pool = pool
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._loop = asyncio.get_running_loop()
        self._exchange: Exchange | None = None
        self._reading: Exchange  # the same, for the parser's callbacks: it speaks only during an exchange
        self._fields: Fields = []
        self._keep_alive = True
        self.write_paused = False
        self._writable: asyncio.Future[None] | None = None
        self.closed = False
        self.reused = False
        self.idle_since = 0

    # The relay's side

    def new_future(self) -> asyncio.Future[None]:
        # asyncio.get_running_loop() costs a system call (getpid) on CPython 3.11.
        return self._loop.create_future()

    def start(self, exchange: Exchange, data: bytes) -> None:
        self._exchange = exchange
        self._transport.write(data)

    def write(self, data: bytes) -> None:
        if not self.closed:
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the upstream has taken enough of what was written."""
        if self.write_paused and not self.closed:
            self._writable = self.new_future()
            await self._writable

    def release(self) -> bool:
        """Part from the exchange; whether the connection can carry another one."""
        exchange, self._exchange = self._exchange, None
        self.reused = True
        return (
            exchange is not None
            and exchange.complete
            and exchange.request_sent
            and self._keep_alive
            and not self.closed
        )

    def abort(self) -> None:
        self.closed = True
        self._transport.abort()

    def resume_reading(self) -> None:
        if not self.closed:
            self._transport.resume_reading()

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.resume_writing()
        if self._exchange is not None:
            lost = ConnectionLostError()
            lost.__cause__ = exc
            self._exchange.fail(lost)

    def eof_received(self) -> None:
        self.closed = True
        if self._exchange is not None:
            self._exchange.fail(ConnectionLostError())

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None or exchange.complete:
            # Bytes nobody asked for would be taken for the next request's answer.
            self.abort()
            return
        exchange.touched = True
        self._reading = exchange
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not exchange.complete:
                exchange.fail(AnswerUnreadableError(str(error)))
            self._keep_alive = False
        if exchange.is_head and exchange.answered:
            # The parser cannot be told that an answer to HEAD has no body, and would wait for one.
            self._parser = httptools.HttpResponseParser(self)
        if exchange.answered or exchange.continued:
            exchange.wake()

    # The parser's side

    def on_message_begin(self) -> None:
        self._fields = []
        if self._reading.complete:
            raise AnswerUnreadableError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        exchange = self._reading
        status = self._parser.get_status_code()
        if len(self._fields) > _MOST_FIELDS:
            raise AnswerUnreadableError("too many header fields")
        if status < _FINAL:
            if status == _SWITCHING:
                raise AnswerUnreadableError("a switch of protocols that nobody asked for")
            exchange.continued = True
            return
        exchange.status = status
        exchange.fields = self._fields
        self._fields = []
        exchange.answered = True
        self._keep_alive = self._parser.should_keep_alive()
        if exchange.is_head:
            exchange.complete = True

    def on_body(self, body: bytes) -> None:
        exchange = self._reading
        if exchange.is_head:
            raise AnswerUnreadableError("a body in an answer to HEAD")
        exchange.chunks.append(body)
        before = exchange.buffered_bytes
        exchange.buffered_bytes = before + len(body)
        if before <= _HIGH_WATER_BYTES < exchange.buffered_bytes:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        exchange = self._reading
        if exchange.answered:
            exchange.complete = True
