"""Neither side is read faster than the other side takes it."""

import asyncio
import threading
from typing import Any

GET = b"GET /api/v1/vms/%b HTTP/1.1\r\nHost: t\r\n\r\n"
UPLOAD = b"PUT /api/v1/vms/%b HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n"
MIB = 1024 * 1024


async def test_a_download_is_held_back_while_the_client_does_not_read(stack: Any, dial: Any) -> None:
    sent = [0]
    total = 64 * MIB

    async def big(_request: Any, _reader: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent[0] < total:
            writer.write(b"x" * MIB)
            await writer.drain()
            sent[0] += MIB

    stack.upstream.behaviours["big"] = big
    client = await dial()
    client.writer.transport.pause_reading()
    await client.send(GET % b"big")
    await settled(sent)
    assert sent[0] < 32 * MIB
    client.writer.transport.resume_reading()
    assert len((await client.answer())[2]) == total


async def test_an_upload_is_held_back_while_the_service_does_not_read(stack: Any, dial: Any) -> None:
    go_on = threading.Event()

    async def late(_request: Any, reader: Any, writer: Any) -> None:
        writer.transport.pause_reading()
        await asyncio.to_thread(go_on.wait, 5)
        writer.transport.resume_reading()
        for _ in range(64):
            await reader.readexactly(MIB)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    stack.upstream.behaviours["late"] = late
    client = await dial()
    await client.send(UPLOAD % (b"late", 64 * MIB))
    sent = [0]

    async def upload() -> None:
        for _ in range(64):
            await client.send(b"x" * MIB)
            sent[0] += MIB

    sending = asyncio.create_task(upload())
    await settled(sent)
    assert sent[0] < 32 * MIB
    go_on.set()
    assert (await client.answer())[0] == 200
    await sending


async def settled(count: list[int]) -> None:
    """Wait until `count` has moved, and then stands still for a while."""
    async with asyncio.timeout(10):
        before = -1
        while before != count[0] or not count[0]:
            before = count[0]
            await asyncio.sleep(0.25)
