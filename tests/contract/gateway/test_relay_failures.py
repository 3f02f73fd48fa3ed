"""What the relay does when a client, a service or the time fails."""

import asyncio
import contextlib
import threading
from typing import Any

import pytest

GET = b"GET /api/v1/vms/%b HTTP/1.1\r\nHost: t\r\n\r\n"


def answering(data: bytes) -> Any:
    async def behaviour(_request: Any, _reader: Any, writer: Any) -> None:
        writer.write(data)
        await writer.drain()

    return behaviour


def closing_after(data: bytes) -> Any:
    async def behaviour(_request: Any, _reader: Any, writer: Any) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return behaviour


async def happened(event: threading.Event) -> bool:
    return await asyncio.to_thread(event.wait, 5.0)


async def test_a_client_that_leaves_while_waiting_aborts_the_request_to_the_service(stack: Any, dial: Any) -> None:
    asked, left = threading.Event(), threading.Event()

    async def slow(_request: Any, reader: Any, _writer: Any) -> None:
        asked.set()
        try:
            await reader.read()
        finally:
            left.set()

    stack.upstream.behaviours["slow"] = slow
    client = await dial()
    await client.send(GET % b"slow")
    assert await happened(asked)
    client.writer.transport.abort()
    async with asyncio.timeout(0.8):  # well before the answer timeout
        assert await happened(left)


async def test_a_client_that_leaves_during_a_silent_stream_aborts_it(stack: Any, dial: Any) -> None:
    left = threading.Event()

    async def stream(_request: Any, reader: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
        try:
            await reader.read()
        finally:
            left.set()

    stack.upstream.behaviours["stream"] = stream
    client = await dial()
    await client.send(GET % b"stream")
    await client.head()
    client.writer.transport.abort()
    assert await happened(left)


@pytest.mark.parametrize("framing", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
async def test_a_client_that_leaves_during_an_upload_never_looks_like_one_that_finished(
    stack: Any, dial: Any, framing: bytes
) -> None:
    seen, left = threading.Event(), threading.Event()
    got: list[bytes] = []

    async def take(_request: Any, reader: Any, _writer: Any) -> None:
        try:
            while part := await reader.read(65536):
                got.append(part)
                seen.set()
        finally:
            left.set()

    stack.upstream.behaviours["take"] = take
    client = await dial()
    await client.send(b"PUT /api/v1/take HTTP/1.1\r\nHost: t\r\n" + framing + b"\r\n\r\n5\r\nhello\r\n")
    assert await happened(seen)
    client.writer.transport.abort()
    assert await happened(left)
    assert b"0\r\n\r\n" not in b"".join(got)


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
    ],
)
async def test_an_answer_that_breaks_off_is_never_passed_off_as_a_whole_one(
    stack: Any, dial: Any, start: bytes
) -> None:
    began = threading.Event()

    async def break_off(_request: Any, _reader: Any, writer: Any) -> None:
        head, _, body = start.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n" + body[:4])
        await writer.drain()
        await asyncio.to_thread(began.wait, 5)
        writer.write(body[4:])
        await writer.drain()
        writer.close()

    stack.upstream.behaviours["broken"] = break_off
    client = await dial()
    await client.send(GET % b"broken")
    assert (await client.head())[0] == 200
    began.set()
    rest = await client.rest()
    assert not rest.endswith(b"0\r\n\r\n")
    assert len(rest) < 100


@pytest.mark.parametrize(
    ("answer", "status", "slug"),
    [
        (b"", 502, b"vms-failed"),
        (b"HTTP/1.1 200 OK\r\nContent-", 502, b"vms-failed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 502, b"vms-failed"),
        (b"HTTP/1.1 200 OK\r\n\r\nno length", 502, b"vms-failed"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502, b"vms-failed"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            502,
            b"vms-f",
        ),
    ],
)
async def test_an_answer_that_cannot_be_trusted_is_a_502_that_names_the_service(
    stack: Any, dial: Any, answer: bytes, status: int, slug: bytes
) -> None:
    stack.upstream.behaviours["bad"] = closing_after(answer)
    client = await dial()
    await client.send(GET % b"bad")
    got, _, body = await client.answer()
    assert got == status
    assert body.startswith(slug)


async def test_bytes_after_an_answer_are_never_taken_for_the_next_one(stack: Any, dial: Any) -> None:
    stack.upstream.behaviours["two"] = answering(
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    )
    client = await dial()
    await client.send(GET % b"two")
    assert (await client.answer())[2] == b"a"
    await client.send(GET % b"next")
    assert (await client.answer())[2] == b"ok"
    first, second = stack.upstream.requests
    assert first.connection != second.connection


async def test_a_stale_connection_costs_an_idempotent_request_one_retry(stack: Any, dial: Any) -> None:
    seen: list[int] = []

    async def drop_reused(request: Any, _reader: Any, writer: Any) -> None:
        seen.append(request.connection)
        if seen.count(request.connection) > 1:
            writer.transport.abort()
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    stack.upstream.behaviours["flaky"] = drop_reused
    client = await dial()
    for _ in range(2):
        await client.send(GET % b"flaky")
        assert (await client.answer())[0] == 200
    assert len(seen) == 3
    await client.send(b"POST /api/v1/vms/flaky HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nhi")
    assert (await client.answer())[0] == 502
    assert len(seen) == 4


async def test_the_circuit_opens_on_a_dead_service_and_closes_again(stack: Any, dial: Any) -> None:
    stack.call(stack.upstream.stop())
    client = await dial()
    for _ in range(3):
        await client.send(GET % b"x")
        status, fields, body = await client.answer()
        assert (status, body) == (503, b"vms-unavailable")
        assert int(fields[b"retry-after"]) >= 1
    assert stack.edge.upstream.breaker.state == "open"
    stack.call(stack.upstream.start())
    await client.send(GET % b"x")
    assert (await client.answer())[0] == 503
    assert stack.upstream.requests == []

    async def recovered() -> bool:
        await client.send(GET % b"x")
        return bool((await client.answer())[0] == 200)

    async with asyncio.timeout(20):
        while not await recovered():
            pass
    assert stack.edge.upstream.breaker.state == "closed"


async def test_a_service_that_does_not_answer_in_time_is_a_504_and_counts_against_it(stack: Any, dial: Any) -> None:
    async def silent(_request: Any, reader: Any, _writer: Any) -> None:
        await reader.read()

    stack.upstream.behaviours["silent"] = silent
    client = await dial()
    await client.send(GET % b"silent")
    status, _, body = await client.answer()
    assert (status, body) == (504, b"vms-timeout")
    assert stack.edge.upstream.breaker.failures == 1


async def test_a_services_own_5xx_does_not_open_the_circuit(stack: Any, dial: Any) -> None:
    stack.upstream.behaviours["ill"] = answering(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")
    client = await dial()
    for _ in range(5):
        await client.send(GET % b"ill")
        assert (await client.answer())[2] == b"busy"
    assert stack.edge.upstream.breaker.state == "closed"


async def test_the_end_of_a_session_cuts_its_open_stream(stack: Any, dial: Any) -> None:
    stack.upstream.behaviours["logs"] = answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")

    client = await dial()
    await client.send(GET % b"logs")
    await client.head()
    await client.reader.readexactly(7)
    await asyncio.to_thread(stack.end_session)
    async with asyncio.timeout(1.0):
        assert await client.rest() == b""


async def test_a_request_whose_session_ends_before_its_answer_is_a_401(stack: Any, dial: Any) -> None:
    asked = threading.Event()

    async def slow(_request: Any, reader: Any, _writer: Any) -> None:
        asked.set()
        await reader.read()

    stack.upstream.behaviours["slow"] = slow
    client = await dial()
    await client.send(GET % b"slow")
    assert await happened(asked)
    await asyncio.to_thread(stack.end_session)
    assert (await client.answer())[0] == 401


async def test_a_broken_upload_gets_400_and_the_service_sees_no_end_of_it(stack: Any, dial: Any) -> None:
    got: list[bytes] = []
    seen, left = threading.Event(), threading.Event()

    async def take(_request: Any, reader: Any, _writer: Any) -> None:
        try:
            while part := await reader.read(65536):
                got.append(part)
                seen.set()
        finally:
            left.set()

    stack.upstream.behaviours["take"] = take
    client = await dial()
    await client.send(b"PUT /api/v1/take HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    assert await happened(seen)
    await client.send(b"nonsense\r\n")
    status, fields, _ = await client.answer()
    assert (status, fields[b"connection"]) == (400, b"close")
    assert await happened(left)
    assert not b"".join(got).endswith(b"0\r\n\r\n")


async def test_two_hundred_clients_that_vanish_leave_nothing_behind(stack: Any, dial: Any) -> None:
    open_at_service = [0]

    async def slow(_request: Any, reader: Any, writer: Any) -> None:
        open_at_service[0] += 1
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
            await reader.read()
        finally:
            open_at_service[0] -= 1

    stack.upstream.behaviours["slow"] = slow
    clients = [await dial() for _ in range(200)]
    for client in clients:
        await client.send(GET % b"slow")
    for client in clients[::2]:
        await client.head()
    assert open_at_service[0] >= len(clients[::2])
    for client in clients:
        client.writer.transport.abort()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while stack.edge.upstream.busy or open_at_service[0]:  # noqa: ASYNC110  # the other thread tells nobody
                await asyncio.sleep(0.02)
    assert (len(stack.edge.upstream.busy), open_at_service[0]) == (0, 0)
