"""How long the guarded client waits, for which address and for whom."""

import asyncio
from collections.abc import Sequence

import pytest

from libs.common.http import GuardedClient, Limits, Reason, UpstreamTooSlow
from tests.contract.common.raw_server import LOOPBACK, OK, QUICK, Server, failure, fetch, scripted


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
