"""The guarded client against real local servers that keep, bend and break HTTP/1.1."""

import asyncio
import gzip
import resource
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from libs.common.http import (
    AddressPolicy,
    BodyTooLarge,
    ExchangeFailed,
    GuardedClient,
    Limits,
    OutboundError,
    Reason,
    RedirectRefused,
    UpstreamTooSlow,
)

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


@pytest.fixture
async def client() -> AsyncIterator[GuardedClient]:
    async with GuardedClient(LOOPBACK, lookup=lookup, limits=QUICK) as guarded:
        yield guarded


async def fetch(client: GuardedClient, port: int, path: str = "/", limits: Limits | None = None) -> bytes:
    async with client.stream("GET", f"http://pics.test:{port}{path}", limits=limits) as response:
        return await response.read()


async def failure(client: GuardedClient, port: int, limits: Limits | None = None) -> OutboundError:
    with pytest.raises(OutboundError) as failed:
        await fetch(client, port, limits=limits)
    assert "127." not in str(failed.value)
    return failed.value


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


# -- time


async def drip(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(OK + b"\r\n" if b"/body" in head else b"")
    text = b"x" * 1000 if b"/body" in head else OK + b"X: " + b"x" * 1000
    for byte in text:
        writer.write(bytes((byte,)))
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("path", "limits", "reason"),
    [
        ("/body", QUICK, Reason.RATE_TOO_LOW),
        ("/head", QUICK, Reason.RESPONSE_TIMEOUT),
        ("/body", Limits(min_rate_bytes_per_s=1, total_deadline_s=0.6), Reason.DEADLINE),
        ("/head", Limits(total_deadline_s=0.4), Reason.DEADLINE),
    ],
)
async def test_a_server_that_drips_is_given_up(
    client: GuardedClient, path: str, limits: Limits, reason: Reason
) -> None:
    async with Server(drip).listen() as server:
        with pytest.raises(UpstreamTooSlow) as slow:
            await asyncio.wait_for(fetch(client, server.port, path, limits), 3)
    assert slow.value.reason is reason


async def test_a_slow_reader_is_not_mistaken_for_a_slow_server(client: GuardedClient) -> None:
    limits = Limits(min_rate_bytes_per_s=1_000_000, rate_window_s=0.05)
    received = 0
    async with (
        scripted(OK + b"Content-Length: 300000\r\n\r\n" + bytes(300_000)) as server,
        client.stream("GET", f"http://pics.test:{server.port}/", limits=limits) as response,
    ):
        async for chunk in response.chunks():
            received += len(chunk)
            await asyncio.sleep(0.08)  # the reader's own pace, longer than the window
    assert received == 300_000


async def test_a_lookup_or_a_connect_that_hangs_times_out() -> None:
    async def hanging(host: str, port: int) -> Sequence[str]:
        del host, port
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return] # never resolves

    async with GuardedClient(LOOPBACK, lookup=hanging, limits=Limits(connect_timeout_s=0.1)) as client:
        assert (await failure(client, 80)).reason is Reason.CONNECT_TIMEOUT
        (_until, task) = client._resolver._known["pics.test", 80]
        task.cancel()


async def test_refused_connections_and_unknown_names_are_told_apart(client: GuardedClient) -> None:
    async with scripted(b"") as server:
        port = server.port
    assert (await failure(client, port)).reason is Reason.CONNECT_FAILED

    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError(host, port)

    async with GuardedClient(LOOPBACK, lookup=unknown) as lost:
        assert (await failure(lost, port)).reason is Reason.NAME_NOT_RESOLVED


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async def two(host: str, port: int) -> Sequence[str]:
        del host, port
        return ["127.0.0.9", "127.0.0.1"]

    async with scripted(OK + b"Content-Length: 2\r\n\r\nhi") as server, GuardedClient(LOOPBACK, lookup=two) as client:
        assert await fetch(client, server.port) == b"hi"


# -- redirects


def redirector(locations: dict[str, str]) -> Server:
    async def script(head: bytes, writer: asyncio.StreamWriter) -> None:
        location = locations.get(head.split(b" ")[1].decode())
        status = "200 OK" if location is None else f"302 Found\r\nLocation: {location}"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    return Server(script)


async def test_redirects_are_followed_up_to_the_limit(client: GuardedClient) -> None:
    async with redirector({"/a": "/b", "/b": "c?x", "/loop": "/loop"}).listen() as server:
        async with client.stream("GET", f"http://pics.test:{server.port}/a") as response:
            assert (response.redirects, response.url) == (2, f"http://pics.test:{server.port}/c?x")
        with pytest.raises(RedirectRefused) as looped:
            await fetch(client, server.port, "/loop")
    assert looped.value.reason is Reason.REDIRECT_LIMIT
    assert len(server.requests) == 3 + 1 + QUICK.max_redirects


async def test_credentials_stay_with_their_origin(client: GuardedClient) -> None:
    locations: dict[str, str] = {"/same": "/again"}
    async with redirector(locations).listen() as server:
        locations["/again"] = f"http://other.test:{server.port}/end"
        headers = {"Authorization": "Bearer s3cret", "X-Key": "s3cret", "Range": "bytes=0-9"}
        async with client.stream("GET", f"http://pics.test:{server.port}/same", headers=headers) as response:
            assert response.redirects == 2
    first, again, end = server.requests
    assert first.count(b"s3cret") == again.count(b"s3cret") == 2
    assert b"s3cret" not in end
    assert b"range: bytes=0-9" in end


# -- TLS


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for `name`, and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "cert.pem", folder / "key.pem"
    public.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(public, private)
    return server, ssl.create_default_context(cafile=str(public))


async def test_tls_keeps_the_hosts_name_and_refuses_another_one(tmp_path: Path) -> None:
    server_tls, client_tls = certificate(tmp_path, "pics.test")
    locations = {"/down": "http://pics.test/"}
    async with (
        redirector(locations).listen(tls=server_tls) as server,
        GuardedClient(LOOPBACK, lookup=lookup, ssl_context=client_tls, limits=QUICK) as client,
    ):
        for _ in range(2):
            async with client.stream("GET", f"https://PICS.test.:{server.port}/") as response:
                assert response.status == 200
        assert (server.server_names, server.connections) == (["pics.test"], 1)
        for url, reason in (
            (f"https://other.test:{server.port}/", Reason.TLS_CERTIFICATE),
            (f"https://127.0.0.1:{server.port}/", Reason.TLS_CERTIFICATE),
            (f"https://pics.test:{server.port}/down", Reason.REDIRECT_DOWNGRADE),
        ):
            with pytest.raises(OutboundError) as refused:
                async with client.stream("GET", url):
                    pass
            assert refused.value.reason is reason
        assert len(server.requests) == 3


async def test_an_untrusted_certificate_and_a_plain_server_fail_in_tls(tmp_path: Path, client: GuardedClient) -> None:
    server_tls, _client_tls = certificate(tmp_path, "pics.test")
    async with Server(drip).listen(tls=server_tls) as server:
        with pytest.raises(ExchangeFailed) as untrusted:
            async with client.stream("GET", f"https://pics.test:{server.port}/"):
                pass
    assert untrusted.value.reason is Reason.TLS_CERTIFICATE
    async with scripted(b"") as plain:
        plain_port = plain.port
        with pytest.raises(OutboundError) as failed:
            async with client.stream("GET", f"https://pics.test:{plain_port}/", limits=Limits(connect_timeout_s=0.5)):
                pass
    assert failed.value.reason in {Reason.TLS_FAILED, Reason.CONNECT_TIMEOUT}
