"""WebSockets through the relay: real client, real server, real service."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from gateway.proxy.replicas import Endpoint


class Service:
    """What the relay connects to; it says what it saw of the handshake, and then does what its path says."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.sent = 0
        self.closed_with: asyncio.Queue[int | None] = asyncio.Queue()

    def screen(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        if "refuse" in request.path:
            return connection.respond(403, "ticket used up")
        if "moved" in request.path:
            response = connection.respond(302, "")
            response.headers["Location"] = "/elsewhere"
            return response
        return None

    async def handle(self, connection: ServerConnection) -> None:
        path = connection.request.path if connection.request else ""
        if "leave" in path:
            await connection.close(4001, "console closed")
        elif "crash" in path:
            connection.transport.abort()
        elif "huge" in path:
            await connection.send(b"x" * 100_000)
        elif "flood" in path:
            while True:
                await connection.send(b"x" * 60_000)
                self.sent += 1
        try:
            async for message in connection:
                await connection.send(message)
        finally:
            self.closed_with.put_nowait(connection.close_code)


def choose(_connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return next((name for name in offered if name == "base64"), None)


@pytest.fixture
async def service(stack: Any) -> AsyncIterator[Service]:
    service = Service()

    async def handle(connection: ServerConnection) -> None:
        await service.handle(connection)

    async with serve(handle, "127.0.0.1", 0, process_request=service.screen, select_subprotocol=choose) as server:
        port = server.sockets[0].getsockname()[1]
        replicas = stack.edge.upstream.replicas
        before, replicas.endpoints = replicas.endpoints, [Endpoint(f"http://127.0.0.1:{port}")]
        yield service
        replicas.endpoints = before


class Once(connect):
    """A client that does not follow redirects either."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def dial(address: str) -> None:
    await Once(address, proxy=None)


def url(stack: Any, path: str) -> str:
    return f"ws://127.0.0.1:{stack.port}/api/v1/vms/7/{path}"


async def test_messages_of_both_kinds_cross_both_ways(stack: Any, service: Service) -> None:
    async with connect(url(stack, "echo;v=1?ticket=%2Fx"), proxy=None) as client:
        for message in ("grüße", b"\x00\xff", "", b"x" * 60_000):
            await client.send(message)
            assert await client.recv() == message
    assert service.requests[0].path == "/api/v1/vms/7/echo;v=1?ticket=%2Fx"


async def test_the_subprotocol_is_the_one_the_service_chose(stack: Any, service: Service) -> None:
    async with connect(url(stack, "echo"), proxy=None, subprotocols=["unknown", "base64"]) as client:  # type: ignore[list-item]  # plain text will do
        assert client.subprotocol == "base64"
    assert service.requests[0].headers["Sec-WebSocket-Protocol"] == "unknown, base64"


async def test_the_service_sees_the_gateways_identity_and_no_other(stack: Any, service: Service) -> None:
    hostile = {
        "Authorization": "Bearer stolen",
        "X-User-Id": "1",
        "X_User": "1",
        "X-Forwarded-For": "6.6.6.6",
        "X-Api-Key": "k",
        "X-Kept": "yes",
        "Cookie": "a=b",
    }
    async with connect(url(stack, "echo"), proxy=None, additional_headers=hostile, origin="https://telar.example"):  # type: ignore[arg-type]  # plain text will do
        pass
    headers = service.requests[0].headers
    assert headers.get_all("Authorization") == ["Bearer signed-by-the-gateway"]
    assert headers.get_all("X-Forwarded-For") == ["127.0.0.1"]
    assert headers.get_all("Host") == [stack.edge.upstream.replicas.endpoints[0].authority.decode()]
    assert headers["X-Kept"] == "yes"
    assert headers["Origin"] == "https://telar.example"
    assert {"X-User-Id", "X_User", "X-Api-Key"}.isdisjoint(headers)


async def test_close_codes_cross_both_ways(stack: Any, service: Service) -> None:
    async with connect(url(stack, "leave"), proxy=None) as client:
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "console closed")
    service.closed_with = asyncio.Queue()
    client = await connect(url(stack, "echo"), proxy=None)
    await client.close(4002, "done")
    assert await asyncio.wait_for(service.closed_with.get(), 20) == 4002


async def test_a_client_that_vanishes_closes_the_connection_to_the_service(stack: Any, service: Service) -> None:
    client = await connect(url(stack, "echo"), proxy=None)
    client.transport.abort()
    assert await asyncio.wait_for(service.closed_with.get(), 20) in (1000, 1001)


@pytest.mark.parametrize(("path", "code"), [("crash", 1014), ("huge", 1009)])
async def test_a_service_that_breaks_off_or_sends_too_much_closes_the_client_with_the_reason(
    stack: Any, service: Service, path: str, code: int
) -> None:
    async with connect(url(stack, path), proxy=None) as client:
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code
    assert len(service.requests) == 1


@pytest.mark.parametrize(("path", "status"), [("refuse", 403), ("moved", 302)])
async def test_a_refused_handshake_is_passed_on_and_a_redirect_is_not_followed(
    stack: Any, service: Service, path: str, status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await dial(url(stack, path))
    assert refused.value.response.status_code == status
    assert len(service.requests) == 1


async def test_an_unreachable_service_is_a_503_before_the_handshake(stack: Any) -> None:
    replicas = stack.edge.upstream.replicas
    before, replicas.endpoints = replicas.endpoints, [Endpoint("http://127.0.0.1:1")]
    try:
        with pytest.raises(InvalidStatus) as refused:
            await dial(url(stack, "echo"))
    finally:
        replicas.endpoints = before
    assert refused.value.response.status_code == 503


async def test_the_end_of_a_session_closes_both_sides(stack: Any, service: Service) -> None:
    async with connect(url(stack, "echo"), proxy=None) as client:
        await client.send("hi")
        await client.recv()
        await asyncio.to_thread(stack.end_session)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(client.recv(), 1.0)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert await asyncio.wait_for(service.closed_with.get(), 1.0) == 1008


async def test_a_client_that_does_not_read_holds_the_service_back(stack: Any, service: Service) -> None:
    client = await connect(url(stack, "flood"), proxy=None)
    client.transport.pause_reading()
    before = -1
    async with asyncio.timeout(10):
        while before != (now := service.sent) or not now:
            before = now
            await asyncio.sleep(0.25)
    assert now * 60_000 < 32 * 1024 * 1024
    client.transport.abort()
