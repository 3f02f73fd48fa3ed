"""The relay behind its real server (uvicorn, httptools, uvloop), in front of an upstream that records every byte."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
import uvloop

from gateway.proxy import Relay, TrustedProxies, Upstream
from gateway.proxy.breaker import CircuitBreaker
from gateway.server import server_config
from gateway.streams import WebSocketRelay
from libs.common.errors import TelarError, Unauthenticated
from libs.common.problems import status_of

DEADLINE_S = 10.0
TOKEN = b"Bearer signed-by-the-gateway"


@dataclass
class Recorded:
    """One request as the upstream read it."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    connection: int
    body: bytes = b""
    complete: bool = False

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]


Behaviour = Callable[[Recorded, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RecordingUpstream:
    """A strict, scripted HTTP/1.1 server; `behaviours` maps the last word of a path to what it does."""

    def __init__(self) -> None:
        self.requests: list[Recorded] = []
        self.garbage: list[bytes] = []
        self.connections = 0
        self.behaviours: dict[str, Behaviour] = {}
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while await self._one(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                self.garbage.append(error.partial)
            return False
        line, *rest = head[:-4].split(b"\r\n")
        if line.count(b" ") != 2 or not line.endswith(b" HTTP/1.1") or any(b":" not in item for item in rest):
            self.garbage.append(head)
            return False
        pairs = [item.split(b":", 1) for item in rest]
        request = Recorded(line, [(name, value.strip()) for name, value in pairs], number)
        self.requests.append(request)
        word = line.split(b" ")[1].split(b"?")[0].rsplit(b"/", 1)[-1].decode()
        behaviour = self.behaviours.get(word)
        if behaviour is not None:
            await behaviour(request, reader, writer)
            return not writer.is_closing()
        await read_body(request, reader)
        request.complete = True
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\n")
        writer.write(b"" if line.startswith(b"HEAD") else b"ok")
        await writer.drain()
        return True


async def read_body(request: Recorded, reader: asyncio.StreamReader) -> None:
    """Read the body as RFC 9112 frames it, and nothing laxer."""
    if request.values(b"transfer-encoding") == [b"chunked"]:
        while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
            request.body += (await reader.readexactly(size + 2))[:-2]
        assert await reader.readexactly(2) == b"\r\n"
    elif request.values(b"content-length"):
        request.body = await reader.readexactly(int(request.values(b"content-length")[0]))


class Edge:
    """The smallest gateway: every request is authenticated; problems are answered as the real one does."""

    def __init__(self, upstream: Upstream) -> None:
        proxies = TrustedProxies(["127.0.0.9/32"])
        self.upstream = upstream
        self.relay = Relay(proxies)
        self.websockets = WebSocketRelay(proxies, max_message_bytes=64 * 1024)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        forward = self.relay.forward if scope["type"] == "http" else self.websockets.forward
        kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
        try:
            await forward(
                scope,
                receive,
                send,
                self.upstream,
                authorization=TOKEN,
                request_id=b"req-1",
                traceparent=b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01",
                session="s1",
            )
        except TelarError as error:
            body = error.slug.encode()
            headers = [(b"content-length", str(len(body)).encode())]
            if error.retry_after_s is not None:
                headers.append((b"retry-after", b"%d" % error.retry_after_s))
            await send({"type": f"{kind}.start", "status": status_of(error), "headers": headers})
            await send({"type": f"{kind}.body", "body": body})


class Stack:
    """Gateway and upstream on a thread of their own with uvloop, as in production; tests talk to `port`."""

    def __init__(self) -> None:
        self.upstream = RecordingUpstream()
        self.loop: asyncio.AbstractEventLoop
        self.edge: Edge
        self.port = 0
        self._ready = threading.Event()
        self._server: uvicorn.Server
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self.upstream.start()
        self.edge = Edge(
            Upstream(
                "vms",
                [f"http://127.0.0.1:{self.upstream.port}"],
                answer_timeout_s=1.0,
                breaker=CircuitBreaker(threshold=3, open_s=0.3),
            )
        )
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = server_config(self.edge, host="127.0.0.1", port=self.port, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._ready.set()
        await self._server.serve(sockets=[listener])
        self.edge.upstream.close()
        await self.upstream.stop()

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE_S)

    def end_session(self) -> None:
        async def end() -> None:
            self.edge.upstream.end_sessions("s1".__eq__, Unauthenticated("The session has ended."))
            self.edge.websockets.end_sessions("s1".__eq__)

        self.call(end())

    def reset(self) -> None:
        async def fresh() -> None:
            self.edge.upstream.close()
            self.edge.upstream.breaker.succeeded()
            self.upstream.requests.clear()
            self.upstream.garbage.clear()
            self.upstream.behaviours.clear()

        self.call(fresh())


@pytest.fixture(scope="session")
def running_stack() -> Iterator[Stack]:
    stack = Stack()
    stack.start()
    yield stack
    stack.stop()


@pytest.fixture
def stack(running_stack: Stack) -> Stack:
    running_stack.reset()
    return running_stack


class Client:
    """A raw HTTP/1.1 client that shows exactly what came over the wire."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        async with asyncio.timeout(DEADLINE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
        line, *rest = head[:-4].split(b"\r\n")
        pairs = [item.split(b": ", 1) for item in rest]
        return int(line.split(b" ")[1]), [(name.lower(), value) for name, value in pairs]

    async def answer(self, *, to_head: bool = False) -> tuple[int, dict[bytes, bytes], bytes]:
        status, fields = await self.head()
        named = dict(fields)
        if to_head or status in (204, 304):
            return status, named, b""
        async with asyncio.timeout(DEADLINE_S):
            if b"content-length" in named:
                return status, named, await self.reader.readexactly(int(named[b"content-length"]))
            body = b""
            while size := int((await self.reader.readuntil(b"\r\n"))[:-2], 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            assert await self.reader.readexactly(2) == b"\r\n"
            return status, named, body

    async def rest(self) -> bytes:
        """Everything until the connection ends, by FIN or reset."""
        data = b""
        async with asyncio.timeout(DEADLINE_S):
            try:
                while part := await self.reader.read(65536):
                    data += part
            except ConnectionError:
                pass
        return data


Dial = Callable[[], Awaitable[Client]]


@pytest.fixture
async def dial(stack: Stack) -> AsyncIterator[Dial]:
    clients: list[Client] = []

    async def connect() -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
        clients.append(Client(reader, writer))
        return clients[-1]

    yield connect
    for client in clients:
        client.writer.close()
