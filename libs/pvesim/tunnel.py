"""Connections that leave HTTP: the request is answered as any other until a handler takes over the raw bytes."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

TUNNEL = "lab.tunnel"
REASON_HEADER = b"x-lab-reason"
_CLOSE_S = 2.0


class Tunnel(asyncio.StreamReaderProtocol):
    """A connection whose request asked for an upgrade: `reader` and `writer` are its bytes, `trailing` came already."""

    def __init__(self, transport: asyncio.Transport, trailing: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(loop=loop)
        super().__init__(self.reader, loop=loop)
        self.transport = transport
        transport.set_protocol(self)
        self.connection_made(transport)
        self.writer = asyncio.StreamWriter(transport, self, self.reader, loop)
        if trailing:
            self.reader.feed_data(trailing)

    def shutdown(self) -> None:
        """Drop the connection; the server closes."""
        with contextlib.suppress(AttributeError):  # Python 3.11.2: a TLS transport closed twice cannot be aborted
            self.transport.abort()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let the app answer the request, or take the connection over, and close it afterwards."""
        try:
            await app({**scope, "extensions": {TUNNEL: self}}, _no_body, self._send)
        except ConnectionError:
            pass
        finally:
            await self._close()

    async def _close(self) -> None:
        """Send what is left; a client that does not take its leave is not waited for."""
        self.writer.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.writer.wait_closed()
        except (OSError, TimeoutError):
            self.shutdown()
        except asyncio.CancelledError:
            self.shutdown()
            raise

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.head(message["status"], message["headers"])
        else:
            self.writer.write(message.get("body", b""))
            await self.writer.drain()

    def head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Write a status line and headers."""
        reasons = [value for name, value in headers if name == REASON_HEADER]
        reason = reasons[0] if reasons else HTTPStatus(status).phrase.encode()
        lines = [b"HTTP/1.1 %d %s" % (status, reason)]
        lines += [b"%s: %s" % (name, value) for name, value in headers if name != REASON_HEADER]
        self.writer.write(b"\r\n".join([*lines, b"", b""]))


async def _no_body() -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


class Takeover(Response, ABC):
    """The answer of a handler that speaks a protocol of its own on the request's connection."""

    @abstractmethod
    async def speak(self, tunnel: Tunnel) -> None:
        """Talk until the protocol ends."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (the ASGI form)
        await self.speak(scope["extensions"][TUNNEL])


def can_take_over(scope: Scope) -> bool:
    """Whether the request came over a connection that its handler may take over."""
    return TUNNEL in scope.get("extensions", {})
