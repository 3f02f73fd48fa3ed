"""Replicas behind one name: found, shared fairly, left when they are gone."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest

from gateway.proxy import ReplicaTransport, Upstream
from gateway.proxy.connection import Exchange
from gateway.proxy.replicas import Replicas, addresses_of
from libs.common.tasks import cancel

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


class Names:
    """A resolver whose answers the test changes."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] | None = addresses

    async def __call__(self, _host: str, _port: int) -> Sequence[str]:
        if self.addresses is None:
            raise socket.gaierror("no answer")
        return self.addresses


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A port at which 127.0.0.1 and 127.0.0.2 answer with the address that was asked and the Host they were given."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            host = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"host:"))
            body = writer.get_extra_info("sockname")[0].encode() + b" " + host
            writer.write(ANSWER % (len(body), body))

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    first = await asyncio.start_server(quietly, "127.0.0.1", 0)
    port = first.sockets[0].getsockname()[1]
    second = await asyncio.start_server(quietly, "127.0.0.2", port)
    yield port
    first.close()
    second.close()


def addresses(replicas: Replicas) -> list[str]:
    return [endpoint.address for endpoint in replicas.endpoints]


async def test_a_name_stands_for_all_its_addresses_and_each_keeps_the_names_host_line() -> None:
    replicas = Replicas(["http://vms:8000"])
    await replicas.learn(Names("10.0.0.2", "10.0.0.3"))
    assert addresses(replicas) == ["10.0.0.2", "10.0.0.3"]
    assert {endpoint.host_line for endpoint in replicas.endpoints} == {b"host: vms:8000\r\n\r\n"}
    assert [replicas.next().address for _ in range(4)] == ["10.0.0.3", "10.0.0.2", "10.0.0.3", "10.0.0.2"]


async def test_a_replica_that_stays_keeps_its_connections_and_one_that_goes_is_left() -> None:
    replicas, names = Replicas(["http://vms:8000"]), Names("10.0.0.2", "10.0.0.3")
    await replicas.learn(names)
    stays, goes = replicas.endpoints
    names.addresses = ["10.0.0.2", "10.0.0.4"]
    await replicas.learn(names)
    assert addresses(replicas) == ["10.0.0.2", "10.0.0.4"]
    assert replicas.endpoints[0] is stays
    assert goes in replicas.left


async def test_while_names_cannot_be_asked_for_everything_stays_as_it_was() -> None:
    replicas, names = Replicas(["http://vms:8000"]), Names("10.0.0.2", "10.0.0.3")
    await replicas.learn(names)
    names.addresses = None
    await replicas.learn(names)
    assert addresses(replicas) == ["10.0.0.2", "10.0.0.3"]


async def test_urls_of_addresses_are_not_asked_for() -> None:
    replicas = Replicas(["http://127.0.0.1:1", "http://[::1]:2"])
    assert not replicas.are_named
    await asyncio.wait_for(Upstream("vms", ["http://127.0.0.1:1"]).follow_replicas(Names()), 20)
    assert await addresses_of("127.0.0.1", 80) == ["127.0.0.1"]


async def test_a_replica_that_cannot_be_reached_is_asked_last_for_a_while(port: int) -> None:
    upstream = Upstream("vms", [f"http://vms:{port}"])
    await upstream.replicas.learn(Names("127.0.0.1", "127.0.0.3"))  # nothing listens at .3
    used = [upstream.idle_connection() or await upstream.new_connection() for _ in range(2)]
    assert [endpoint.address for endpoint in upstream.replicas.in_turn()] == ["127.0.0.1", "127.0.0.3"]
    upstream.replicas.next()
    assert [endpoint.address for endpoint in upstream.replicas.in_turn()] == ["127.0.0.1", "127.0.0.3"]
    for connection in used:
        connection.abort()
    upstream.close()


async def test_sequential_requests_reuse_a_connection_to_every_replica(port: int) -> None:
    upstream = Upstream("vms", [f"http://vms:{port}"])
    await upstream.replicas.learn(Names("127.0.0.1", "127.0.0.2"))
    seen = set()
    for _ in range(6):
        connection = upstream.idle_connection() or await upstream.new_connection()
        seen.add(id(connection))
        exchange = Exchange(connection, asyncio.Event().wait, "GET", "", upstream.tick)  # type: ignore[arg-type]
        upstream.begin(exchange)
        connection.start(exchange, b"GET / HTTP/1.1\r\n" + connection.host_line)
        while not exchange.complete:
            await exchange.progress()
        upstream.finish(exchange)
    assert len(seen) == 2
    upstream.close()


async def test_the_connections_of_a_replica_that_left_are_closed_in_the_end(port: int) -> None:
    names = Names("127.0.0.1", "127.0.0.2")
    upstream = Upstream("vms", [f"http://vms:{port}"], keep_alive_s=0.1)
    following = asyncio.create_task(upstream.follow_replicas(names, every_s=0.02))
    async with asyncio.timeout(10):
        while len(upstream.replicas.endpoints) < 2:  # noqa: ASYNC110 - the replicas tell nobody
            await asyncio.sleep(0.01)
        connection = upstream.idle_connection() or await upstream.new_connection()
        gone = next(one.address for one in upstream.replicas.endpoints if one.idle is connection.pool)
        exchange = Exchange(connection, asyncio.Event().wait, "GET", "", upstream.tick)  # type: ignore[arg-type]
        upstream.begin(exchange)
        names.addresses = [one for one in names.addresses or () if one != gone]
        while not upstream.replicas.left:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        connection.start(exchange, b"GET / HTTP/1.1\r\n" + connection.host_line)
        while not exchange.complete:
            await exchange.progress()
        upstream.finish(exchange)
        while upstream.replicas.left:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    assert connection.closed
    following.cancel()
    upstream.close()


async def test_the_gateways_own_questions_go_to_all_replicas_under_the_services_name(port: int) -> None:
    replicas = Replicas([f"http://auth:{port}"])
    await replicas.learn(Names("127.0.0.1", "127.0.0.2", "127.0.0.3"))  # nothing listens at .3
    async with httpx.AsyncClient(transport=ReplicaTransport([replicas])) as http:
        told = [(await http.post(f"http://auth:{port}/internal/login", json={})).text for _ in range(6)]
        assert {line.split()[0] for line in told} == {"127.0.0.1", "127.0.0.2"}
        assert {line.partition(" ")[2] for line in told} == {f"host: auth:{port}"}
        elsewhere = await http.get(f"http://127.0.0.1:{port}/")
        assert elsewhere.text.startswith("127.0.0.1 ")


async def test_a_question_that_no_replica_takes_fails_as_one_to_a_single_address() -> None:
    replicas = Replicas(["http://auth:1"])
    await replicas.learn(Names("127.0.0.1", "127.0.0.2"))
    async with httpx.AsyncClient(transport=ReplicaTransport([replicas])) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("http://auth:1/")


async def test_a_service_that_never_answers_takes_no_connection_of_another(port: int) -> None:
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.add(writer)

    connected: set[asyncio.StreamWriter] = set()
    hung = await asyncio.start_server(silent, "127.0.0.1", 0, backlog=200)
    hung_url, auth_url = f"http://127.0.0.1:{hung.sockets[0].getsockname()[1]}", f"http://127.0.0.1:{port}"
    transport = ReplicaTransport([Replicas([hung_url]), Replicas([auth_url])])
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(20, pool=1)) as http:
        asking = [asyncio.create_task(http.get(hung_url)) for _ in range(110)]
        async with asyncio.timeout(10):
            while len(connected) < 100:  # noqa: ASYNC110 - the connections tell nobody
                await asyncio.sleep(0.01)
            assert (await http.get(auth_url)).status_code == 200
        await cancel(*asking)
    for writer in connected:
        writer.close()
    hung.close()
