"""The guarded client against real local servers that keep, bend and break HTTP/1.1."""

import asyncio
import gzip
import resource

import pytest

from libs.common.http import BodyTooLarge, ExchangeFailed, GuardedClient, Limits, Reason
from tests.contract.common.raw_server import LOOPBACK, OK, Server, endless, failure, fetch, lookup, scripted

# -- what is sent, and over which connection


async def test_a_request_names_the_host_asks_for_identity_and_carries_no_cookies(client: GuardedClient) -> None:
    answer = OK + b"Set-Cookie: a=b\r\nContent-Length: 2\r\n\r\nhi"
    async with scripted(answer) as server:
        assert await fetch(client, server.port, "/a?b") == b"hi"
        assert await fetch(client, server.port) == b"hi"
    first, second = server.requests
    assert first.startswith(b"GET /a?b HTTP/1.1\r\nHost: pics.test:%d\r\n" % server.port)
    assert b"\r\nAccept-Encoding: identity\r\n" in first
    assert b"ookie" not in second
    assert server.connections == 1


async def test_a_connection_is_never_shared_between_hosts_at_one_address(client: GuardedClient) -> None:
    async with scripted(OK + b"Content-Length: 0\r\n\r\n") as server:
        for host in ("a.test", "b.test", "a.test"):
            async with client.stream("GET", f"http://{host}:{server.port}/") as response:
                assert await response.read() == b""
        assert server.connections == 2


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        scripted(OK + b"Content-Length: 0\r\n\r\n") as proxy,
        scripted(OK + b"Content-Length: 0\r\n\r\n") as server,
    ):
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with GuardedClient(LOOPBACK, lookup=lookup) as client:
            await fetch(client, server.port)
    assert (proxy.connections, server.connections) == (0, 1)


async def test_a_connection_that_died_while_idle_is_replaced(client: GuardedClient) -> None:
    async def script(_head: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(OK + b"Content-Length: 2\r\n\r\nhi")
        return False  # closes without having said so

    async with Server(script).listen() as server:
        assert [await fetch(client, server.port) for _ in range(5)] == [b"hi"] * 5


async def test_bytes_that_arrive_on_an_idle_connection_are_not_the_next_answer(client: GuardedClient) -> None:
    late = asyncio.Event()

    async def script(head: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(OK + b"Content-Length: 4\r\n\r\ngood")
        if b"/first" in head:
            await writer.drain()
            await late.wait()
            writer.write(OK + b"Content-Length: 4\r\n\r\nevil")
        return True

    async with Server(script).listen() as server:
        assert await fetch(client, server.port, "/first") == b"good"
        (idle,) = client._pool._idle
        late.set()
        await asyncio.wait_for(asyncio.shield(idle.closed), 5)
        assert await fetch(client, server.port, "/second") == b"good"
        assert server.connections == 2


async def test_a_head_request_has_no_body(client: GuardedClient) -> None:
    async with (
        scripted(OK + b"Content-Length: 99999999\r\n\r\n") as server,
        client.stream("HEAD", f"http://pics.test:{server.port}/") as response,
    ):
        assert (response.status, response.headers["content-length"]) == (200, "99999999")
        assert await response.read() == b""


@pytest.mark.parametrize("name", ["Host", "Cookie", "Accept-Encoding", "Proxy-Authorization", "X Y", "X\r\nY"])
async def test_a_header_that_is_the_clients_own_or_malformed_is_a_mistake(client: GuardedClient, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        async with client.stream("GET", "http://pics.test/", headers={name: "x"}):
            pass


# -- lengths, sizes and framing


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (OK + b"Content-Length: 10\r\n\r\nshort", Reason.LENGTH_MISMATCH),
        (OK + b"Content-Length: 4\r\n\r\nlonger", Reason.LENGTH_MISMATCH),
        (OK + b"Content-Length: 4\r\nConnection: close\r\n\r\nlonger", Reason.LENGTH_MISMATCH),
        (OK + b"Content-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Reason.LENGTH_MISMATCH),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", Reason.BODY_TRUNCATED),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Reason.BODY_TRUNCATED),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n", Reason.PROTOCOL_ERROR),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Reason.ENCODING_REFUSED),
        (OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", Reason.PROTOCOL_ERROR),
        (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", Reason.PROTOCOL_ERROR),
        (OK + b"Content-Length: -5\r\n\r\nhello", Reason.PROTOCOL_ERROR),
        (OK + b"Content-Length: 1000001\r\n\r\n", Reason.BODY_TOO_LARGE),
        (OK + b"Content-Length: 99999999999999999999999\r\n\r\n", Reason.PROTOCOL_ERROR),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", Reason.PROTOCOL_ERROR),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Reason.PROTOCOL_ERROR),
        (b"<html>", Reason.PROTOCOL_ERROR),
        (b"", Reason.CONNECTION_LOST),
        (b"HTTP/1.1 200 OK\r\nX: ", Reason.CONNECTION_LOST),
        (OK + b"Content-Encoding: br\r\nContent-Length: 3\r\n\r\nabc", Reason.ENCODING_REFUSED),
        (OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", Reason.ENCODING_INVALID),
        (OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"x" * 999, mtime=0)[:-4], Reason.ENCODING_INVALID),
        (OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(50_000_000), mtime=0), Reason.DECODED_TOO_LARGE),
        (OK + b"X: " + b"a" * 70_000 + b"\r\n\r\n", Reason.HEADERS_TOO_LARGE),
    ],
    ids=lambda value: value.value if isinstance(value, Reason) else None,
)
async def test_an_answer_that_is_not_what_it_says_is_an_error(
    client: GuardedClient, answer: bytes, reason: Reason
) -> None:
    async with scripted(answer, then=False) as server:
        assert (await failure(client, server.port)).reason is reason
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 5\r\n\r\nhello",
        OK + b"Content-Length: 5\r\nContent-Encoding: identity\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2;ext=1\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: x\r\n\r\n",
        OK + b"\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello",
        OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"hello", mtime=0),
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
async def test_every_proper_framing_gives_the_body(client: GuardedClient, answer: bytes) -> None:
    async with scripted(answer, then=False) as server:
        assert await fetch(client, server.port) == b"hello"


@pytest.mark.parametrize(
    ("start", "again", "reason"),
    [
        (OK + b"\r\n", b"x" * 65536, Reason.BODY_TOO_LARGE),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n", Reason.BODY_TOO_LARGE),
        (OK, b"X-Header: again and again\r\n", Reason.HEADERS_TOO_LARGE),
        (OK + b"X: ", b"x" * 65536, Reason.HEADERS_TOO_LARGE),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", Reason.HEADERS_TOO_LARGE),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"extension" * 1000, Reason.HEADERS_TOO_LARGE),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nTrailer: ", b"x" * 65536, Reason.HEADERS_TOO_LARGE),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"Trailer: again\r\n" * 100, Reason.HEADERS_TOO_LARGE),
    ],
)
async def test_anything_endless_is_cut(client: GuardedClient, start: bytes, again: bytes, reason: Reason) -> None:
    async with endless(start, again) as server:
        error = await failure(client, server.port)
    assert error.reason is reason
    assert isinstance(error, BodyTooLarge if reason is Reason.BODY_TOO_LARGE else ExchangeFailed)


async def test_a_large_body_streams_in_constant_memory(client: GuardedClient) -> None:
    size_bytes, piece = 400_000_000, bytes(1_000_000)

    async def script(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % size_bytes)
        for _ in range(size_bytes // len(piece)):
            writer.write(piece)
            await writer.drain()

    limits = Limits(max_bytes=size_bytes, max_decoded_bytes=size_bytes)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with Server(script).listen() as server:
        received = 0
        async with client.stream("GET", f"http://pics.test:{server.port}/", limits=limits) as response:
            async with asyncio.timeout(10):
                while not response.connection._paused:  # noqa: ASYNC110 - the transport offers no event for it
                    await asyncio.sleep(0)
            async for chunk in response.chunks():
                received += len(chunk)
                assert response.exchange.buffered_bytes < 2_000_000
    assert received == size_bytes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32_768
