import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.corpora.images import disks

MIB = 1 << 20
BOUNDARY = b"edge"
Eventually = Callable[..., Awaitable[None]]


class Process:
    """The service in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, token: str) -> None:
        self.process = process
        self.port = port
        self.headers = {
            "authorization": f"Bearer {token}",
            "content-type": "multipart/form-data; boundary=edge",
        }
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False)

    def memory_bytes(self, name: str) -> int:
        """What /proc says: VmRSS now, VmHWM at most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) * 1024

    def open_blobs(self) -> int:
        links = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.append(str(link.readlink()))
        return sum("/blobs/" in link for link in links)

    def reset_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@contextlib.asynccontextmanager
async def started(database_url: str, folder: Path, *, lease_s: float = 60) -> AsyncIterator[Process]:
    command = [sys.executable, "-m", "tests.integration.images.server", database_url, str(folder), str(lease_s)]
    root = Path(__file__).parents[3]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, cwd=root
    )
    try:
        assert process.stdout is not None
        while True:  # log lines may come before it
            line = await asyncio.wait_for(process.stdout.readline(), 30)
            assert line, "the service did not start"
            if line.startswith(b'{"port"'):
                break
        running = Process(process, **json.loads(line))
        drain = asyncio.create_task(_drain(process.stdout))
        async with running.http:
            yield running
        drain.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65_536):
        pass


def opening(filename: str = "disk.img") -> bytes:
    fields = b"".join(
        b'--edge\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n' % name for name in (b"name", b"os_type")
    )
    part = f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
    return fields + part.encode()


ENDING = b"\r\n--edge--\r\n"


def rows(database_url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url) as connection:
        return connection.execute(query).fetchall()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def is_clean(database_url: str, folder: Path) -> bool:
    (left,) = rows(
        database_url,
        "SELECT (SELECT count(*) FROM uploads), (SELECT count(*) FROM images), (SELECT count(*) FROM blobs),"
        " (SELECT coalesce((used->>'image_bytes')::bigint, 0) FROM quota_accounts WHERE owner_id = 'owner')",
    )
    return left == (0, 0, 0, 0) and files(folder) == []


async def half_an_upload(service: Process, total: int, sent: int) -> asyncio.StreamWriter:
    """Begin an upload on a connection of its own and send a part of it."""
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    length = len(opening()) + total + len(ENDING)
    head = f"POST /api/v1/images/upload HTTP/1.1\r\nhost: images\r\ncontent-length: {length}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in service.headers.items())
    writer.write(head.encode() + b"\r\n" + opening() + bytes(sent))
    await writer.drain()
    return writer


async def test_a_killed_process_leaves_nothing_once_its_successor_has_swept(
    database_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with started(database_url, tmp_path, lease_s=1.5) as victim:
        writer = await half_an_upload(victim, total=64 * MIB, sent=16 * MIB)
        await eventually(lambda: sum(path.stat().st_size for path in files(tmp_path)) >= 8 * MIB)
        assert rows(database_url, "SELECT count(*) FROM uploads") == [(1,)]
        assert not is_clean(database_url, tmp_path)
        victim.process.send_signal(signal.SIGKILL)
        await victim.process.wait()
        writer.close()
    assert rows(database_url, "SELECT count(*) FROM images") == [(0,)]
    assert len(files(tmp_path)) == 1
    async with started(database_url, tmp_path, lease_s=1.5):
        await eventually(lambda: is_clean(database_url, tmp_path))


async def test_a_client_that_goes_away_leaves_nothing_at_once(
    database_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with started(database_url, tmp_path) as service:
        writers = [await half_an_upload(service, total=64 * MIB, sent=4 * MIB) for _ in range(5)]
        await eventually(lambda: len(files(tmp_path)) == 5)
        assert rows(database_url, "SELECT count(*) FROM uploads") == [(5,)]
        for writer in writers:
            writer.close()
        await eventually(lambda: is_clean(database_url, tmp_path))


async def test_an_upload_longer_than_its_lease_stays_alive(
    database_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    content = disks.raw_disk(4 * MIB)
    async with started(database_url, tmp_path, lease_s=2) as service:
        until = time.monotonic() + 5

        async def slowly() -> AsyncIterator[bytes]:
            yield opening()
            for start in range(0, len(content), MIB):
                yield content[start : start + MIB]
            await eventually(lambda: time.monotonic() > until)
            yield ENDING

        answer = await service.http.post("/api/v1/images/upload", headers=service.headers, content=slowly())
        assert answer.status_code == 201, answer.text
        image = answer.json()["image"]
        assert image["sha256"] == hashlib.sha256(content).hexdigest()
        deleted = await service.http.delete(f"/api/v1/images/{image['id']}", headers=service.headers)
        assert deleted.status_code == 204
        await eventually(lambda: is_clean(database_url, tmp_path))


async def test_a_large_upload_and_download_take_little_memory(database_url: str, tmp_path: Path) -> None:
    size, piece = 192 * MIB, os.urandom(MIB)

    async def body() -> AsyncIterator[bytes]:
        yield opening()
        for _ in range(size // MIB):
            yield piece
        yield ENDING

    async with started(database_url, tmp_path) as service:
        await service.http.get("/api/v1/images", headers=service.headers)
        before = service.memory_bytes("VmRSS")
        service.reset_peak()
        headers = {**service.headers, "content-length": str(len(opening()) + size + len(ENDING))}
        answer = await service.http.post("/api/v1/images/upload", headers=headers, content=body())
        assert answer.status_code == 201, answer.text
        assert answer.json()["image"]["size_bytes"] == size
        path = f"/api/v1/images/{answer.json()['image']['id']}"
        digest = hashlib.sha256()
        async with service.http.stream("GET", f"{path}/download", headers=service.headers) as download:
            async for received in download.aiter_raw():
                digest.update(received)
        assert digest.hexdigest() == answer.json()["image"]["sha256"]
        assert service.memory_bytes("VmHWM") - before < 64 * MIB
        await service.http.delete(path, headers=service.headers)


async def test_a_client_that_leaves_a_download_leaves_no_open_file(
    database_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with started(database_url, tmp_path) as service:
        body = opening() + bytes(48 * MIB) + ENDING
        answer = await service.http.post("/api/v1/images/upload", headers=service.headers, content=body)
        path = f"/api/v1/images/{answer.json()['image']['id']}/download"
        head = f"GET {path} HTTP/1.1\r\nhost: images\r\nauthorization: {service.headers['authorization']}\r\n\r\n"
        writers = []
        for _ in range(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(head.encode())
            assert b" 200 " in await reader.readline()
            writers.append(writer)
        assert service.open_blobs() == 10
        for writer in writers:
            writer.close()
        await eventually(lambda: service.open_blobs() == 0)


async def test_a_refused_length_is_answered_while_the_client_still_sends(database_url: str, tmp_path: Path) -> None:
    async with started(database_url, tmp_path) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        head = "POST /api/v1/images/upload HTTP/1.1\r\nhost: images\r\ncontent-length: 99999999999\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in service.headers.items())
        writer.write(head.encode() + b"\r\n" + opening())
        await writer.drain()
        line = await asyncio.wait_for(reader.readline(), 20)
        assert b" 413 " in line
        writer.close()


@pytest.fixture(autouse=True)
def empty(database_url: str) -> None:
    """Each test here has the whole database to itself."""
    with psycopg.connect(database_url) as connection:
        known = connection.execute("SELECT to_regclass('images')").fetchone()
        if known is not None and known[0] is not None:
            connection.execute("TRUNCATE images, image_members, blobs, uploads, quota_accounts, outbox, inbox")
