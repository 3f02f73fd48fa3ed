"""Endpoints, replicas and the pool."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from gateway.proxy.connection import Exchange
from gateway.proxy.errors import failures_of
from gateway.proxy.replicas import Endpoint
from gateway.proxy.upstream import Upstream
from libs.common.errors import Unavailable


@pytest.mark.parametrize(
    "url", ["https://x", "http://", "http://x/path", "http://u@x", "ftp://x", "http://x?y", "x:80"]
)
def test_an_upstream_must_be_a_plain_http_address(url: str) -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        Endpoint(url)


def test_an_endpoint_knows_its_own_host_line() -> None:
    assert Endpoint("http://[::1]:81/").host_line == b"host: [::1]:81\r\n\r\n"
    assert Endpoint("http://vms").host_line == b"host: vms:80\r\n\r\n"


def test_each_slug_of_a_service_has_one_class() -> None:
    assert failures_of("vms") is failures_of("vms")
    assert failures_of("vms").unavailable.slug == "vms-unavailable"
    assert failures_of("images").timeout.slug == "images-timeout"
    assert failures_of("images").failed.title == "The images service failed"


@pytest.fixture
async def ports() -> AsyncIterator[list[int]]:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    servers = [await asyncio.start_server(hold, "127.0.0.1", 0) for _ in range(2)]
    yield [server.sockets[0].getsockname()[1] for server in servers]
    for server in servers:
        server.close()


async def nobody() -> Any:
    await asyncio.get_running_loop().create_future()


async def test_replicas_take_turns_and_a_dead_one_is_passed_over(ports: list[int]) -> None:
    urls = [f"http://127.0.0.1:{port}" for port in (ports[0], 1, ports[1])]
    upstream = Upstream("vms", urls)
    used = [upstream.idle_connection() or await upstream.new_connection() for _ in range(6)]
    hosts = {connection.host_line for connection in used}
    for connection in used:
        connection.abort()
    upstream.close()
    assert hosts == {b"host: 127.0.0.1:%d\r\n\r\n" % port for port in ports}
    assert upstream.breaker.failures == 0


async def test_a_service_of_which_nothing_can_be_reached_is_unavailable_and_says_when_to_come_back() -> None:
    upstream = Upstream("vms", ["http://127.0.0.1:1"])
    with pytest.raises(Unavailable) as caught:
        await upstream.new_connection()
    assert caught.value.slug == "vms-unavailable"
    assert caught.value.retry_after_s is not None
    assert upstream.breaker.failures == 1


async def test_more_requests_than_a_service_may_have_are_turned_away(ports: list[int]) -> None:
    upstream = Upstream("vms", [f"http://127.0.0.1:{ports[0]}"], max_requests=1)
    connection = await upstream.new_connection()
    exchange = Exchange(connection, nobody, "GET", "", upstream.tick)
    upstream.admit()
    upstream.begin(exchange)
    with pytest.raises(Unavailable, match="more requests"):
        upstream.admit()
    connection.start(exchange, b"GET / HTTP/1.1\r\n\r\n")
    upstream.finish(exchange)
    upstream.admit()
    upstream.close()


async def test_an_idle_connection_is_closed_before_the_service_would_do_so(ports: list[int]) -> None:
    upstream = Upstream("vms", [f"http://127.0.0.1:{ports[0]}"], keep_alive_s=0.1)
    connection = await upstream.new_connection()
    exchange = Exchange(connection, nobody, "GET", "", upstream.tick)
    upstream.begin(exchange)
    connection.start(exchange, b"GET / HTTP/1.1\r\n\r\n")
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    upstream.finish(exchange)
    assert list(upstream.replicas.endpoints[0].idle) == [connection]
    async with asyncio.timeout(20):
        while upstream.replicas.endpoints[0].idle:  # noqa: ASYNC110  # the pool tells nobody
            await asyncio.sleep(0.01)
    assert connection.closed
    upstream.close()


async def test_what_is_admitted_is_counted_a_moment_later() -> None:
    counter = Counter("asked", "Requests", registry=CollectorRegistry())
    upstream = Upstream("vms", ["http://vms"], requests=counter)
    for _ in range(3):
        upstream.admit()
    async with asyncio.timeout(20):
        while counter.collect()[0].samples[0].value == 0:  # noqa: ASYNC110 - a counter has no event to wait for
            await asyncio.sleep(0.01)
    assert counter.collect()[0].samples[0].value == 3
    upstream.close()
