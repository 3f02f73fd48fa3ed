"""Connections to checked addresses, kept for reuse under the very address and host they were checked for."""

import asyncio
import ssl
from collections import OrderedDict
from typing import NamedTuple, cast

from libs.common.http.address import Address
from libs.common.http.errors import ExchangeFailed, OutboundError, Reason, UpstreamTooSlow
from libs.common.http.exchange import Exchange

_PAUSE_BYTES = 1_048_576
_RESUME_BYTES = 262_144


class Endpoint(NamedTuple):
    """What a connection was checked for; only a request for exactly this may reuse it."""

    scheme: str
    host: str
    port: int
    address: Address


class Connection(asyncio.Protocol):
    """One connection carrying one exchange at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.exchange: Exchange | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self._paused = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.abort()  # an answer nobody asked for would be taken for the next request's
            return
        exchange.feed(data)
        if exchange.error is not None:
            self.abort()
        elif exchange.buffered_bytes > _PAUSE_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)
        if self.exchange is not None:
            self.exchange.end()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, exchange: Exchange) -> None:
        self.exchange = exchange
        if self._transport is None:
            exchange.end()
        else:
            self._transport.write(request)

    def drained(self) -> None:
        """Read on once the caller has taken most of what was buffered."""
        if self._paused and (self.exchange is None or self.exchange.buffered_bytes < _RESUME_BYTES):
            self._paused = False
            if self._transport is not None:
                self._transport.resume_reading()

    def rest(self) -> None:
        """Forget a complete exchange; from here on anything that arrives closes the connection."""
        self.exchange = None
        self.drained()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Pool:
    """Dials checked addresses and keeps idle connections, newest first, at most `max_idle` for `idle_s` each."""

    def __init__(self, ssl_context: ssl.SSLContext, *, max_idle: int, idle_s: float) -> None:
        self._ssl_context = ssl_context
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._idle: OrderedDict[Connection, asyncio.TimerHandle] = OrderedDict()
        self._by_endpoint: dict[Endpoint, list[Connection]] = {}
        self._closed = False

    def take(self, endpoints: list[Endpoint]) -> Connection | None:
        """An idle connection to one of these endpoints."""
        for endpoint in endpoints:
            while waiting := self._by_endpoint.get(endpoint):
                connection = waiting[-1]
                self._forget(connection)
                if connection.usable:
                    return connection
        return None

    def put(self, connection: Connection) -> None:
        """Keep a connection whose exchange is complete."""
        connection.rest()
        if self._closed or not connection.usable:
            connection.abort()
            return
        if len(self._idle) >= self._max_idle:
            self._drop(next(iter(self._idle)))
        timer = asyncio.get_running_loop().call_later(self._idle_s, self._drop, connection)
        self._idle[connection] = timer
        self._by_endpoint.setdefault(connection.endpoint, []).append(connection)

    async def dial(self, endpoints: list[Endpoint], *, until: float) -> Connection:
        """Connect to the first endpoint that answers before loop time `until`; each gets a fair share of the time."""
        loop = asyncio.get_running_loop()
        error: OutboundError = ExchangeFailed(Reason.CONNECT_FAILED, "The server refused the connection.")
        for position, endpoint in enumerate(endpoints):
            share_s = (until - loop.time()) / (len(endpoints) - position)
            try:
                async with asyncio.timeout(share_s):
                    return await self._connect(endpoint)
            except TimeoutError:
                error = UpstreamTooSlow(Reason.CONNECT_TIMEOUT, "The server did not accept a connection in time.")
            except ssl.SSLCertVerificationError:
                raise ExchangeFailed(
                    Reason.TLS_CERTIFICATE, "The server's certificate is not valid for the URL's host."
                ) from None
            except ssl.SSLError:
                raise ExchangeFailed(Reason.TLS_FAILED, "The TLS handshake with the server failed.") from None
            except OSError:
                error = ExchangeFailed(Reason.CONNECT_FAILED, "The server refused the connection.")
        raise error

    async def _connect(self, endpoint: Endpoint) -> Connection:
        """Dial the checked address itself; the host goes only into SNI and the certificate check."""
        secure = endpoint.scheme == "https"
        _transport, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(endpoint),
            str(endpoint.address),
            endpoint.port,
            ssl=self._ssl_context if secure else None,
            server_hostname=endpoint.host if secure else None,
        )
        return connection

    async def aclose(self) -> None:
        self._closed = True
        connections = list(self._idle)
        for connection in connections:
            self._drop(connection)
        for connection in connections:
            await connection.closed

    def _forget(self, connection: Connection) -> None:
        self._idle.pop(connection).cancel()
        waiting = self._by_endpoint[connection.endpoint]
        waiting.remove(connection)
        if not waiting:
            del self._by_endpoint[connection.endpoint]

    def _drop(self, connection: Connection) -> None:
        self._forget(connection)
        connection.abort()
