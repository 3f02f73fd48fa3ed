"""A raw socket server that answers as it is told, and how the guarded client asks it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ipaddress import ip_network

import pytest

from libs.common.http import AddressPolicy, GuardedClient, Limits, OutboundError

LOOPBACK = AddressPolicy([ip_network("127.0.0.0/8")])
QUICK = Limits(
    connect_timeout_s=2,
    response_timeout_s=0.5,
    total_deadline_s=5,
    max_bytes=1_000_000,
    max_decoded_bytes=1_000_000,
    rate_window_s=0.4,
)
OK = b"HTTP/1.1 200 OK\r\n"
Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[bool | None]]


class Server:
    """A raw socket server: `script` answers each request head; returning False ends the connection."""

    def __init__(self, script: Script) -> None:
        self.port = 0
        self.requests: list[bytes] = []
        self.connections = 0
        self.server_names: list[str | None] = []
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            going: bool | None = True
            while going is not False:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head)
                going = await self._script(head, writer)
                await writer.drain()
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def listen(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator["Server"]:
        if tls is not None:
            tls.sni_callback = lambda _socket, name, _context: self.server_names.append(name)
        server = await asyncio.start_server(self._serve, host, 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks)
            await server.wait_closed()


def scripted(answer: bytes, *, then: bool | None = None) -> AbstractAsyncContextManager[Server]:
    """A server that gives every request the same bytes, and closes after them if `then` is False."""

    async def script(_head: bytes, writer: asyncio.StreamWriter) -> bool | None:
        writer.write(answer)
        return then

    return Server(script).listen()


def endless(start: bytes, again: bytes) -> AbstractAsyncContextManager[Server]:
    async def script(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(again)
            await writer.drain()

    return Server(script).listen()


async def lookup(host: str, port: int) -> Sequence[str]:
    del host, port
    return ["127.0.0.1"]


async def fetch(client: GuardedClient, port: int, path: str = "/", limits: Limits | None = None) -> bytes:
    async with client.stream("GET", f"http://pics.test:{port}{path}", limits=limits) as response:
        return await response.read()


async def failure(client: GuardedClient, port: int, limits: Limits | None = None) -> OutboundError:
    with pytest.raises(OutboundError) as failed:
        await fetch(client, port, limits=limits)
    assert "127." not in str(failed.value)
    return failed.value


def redirector(locations: dict[str, str]) -> Server:
    async def script(head: bytes, writer: asyncio.StreamWriter) -> None:
        location = locations.get(head.split(b" ")[1].decode())
        status = "200 OK" if location is None else f"302 Found\r\nLocation: {location}"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    return Server(script)
