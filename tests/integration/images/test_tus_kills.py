"""A tus upload whose client and server are killed again and again: nothing is lost, and little is sent twice."""

import asyncio
import base64
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Self

import pytest

from tests.integration.images import tus_uploader
from tests.integration.images.test_processes import Process, started
from tests.integration.images.tus_uploader import METADATA

MIB = 1 << 20
CHUNKS = (3 * MIB, 16 * MIB, 128 * MIB)
MOST_SENT_TWICE = 16 * MIB
Eventually = Callable[..., Awaitable[None]]


class Client:
    """The uploader in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, notes: Path, chunk_bytes: int) -> None:
        self.process = process
        self.notes = notes
        self.may_send_twice = min(chunk_bytes, MOST_SENT_TWICE)

    @property
    def position(self) -> int:
        """How far into the file it has sent."""
        start, sent = tus_uploader.read_notes(self.notes)
        return start + sent

    @property
    def has_ended(self) -> bool:
        return self.process.returncode is not None


@contextlib.asynccontextmanager
async def uploading(
    server: Process, size: int, chunk_bytes: int, notes: Path, url: str | None
) -> AsyncIterator[Client]:
    tus_uploader.clear_notes(notes)
    token = server.headers["authorization"].removeprefix("Bearer ")
    told = [f"http://127.0.0.1:{server.port}", token, str(size), str(chunk_bytes), str(notes), *([url] if url else [])]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.images.tus_uploader", *told),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=Path(__file__).parents[3],
    )
    try:
        yield Client(process, notes, chunk_bytes)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Upload:
    """One upload through many processes, with what was sent twice because of each kill."""

    def __init__(self, database_url: str, folder: Path, size: int, eventually: Eventually) -> None:
        self.database_url = database_url
        self.folder = folder
        self.size = size
        self.eventually = eventually
        self.url: str | None = None
        self.sent_twice: list[int] = []
        self.kills = {"client": 0, "server": 0}
        self._incarnations = 0
        self._before: Client | None = None
        self._server: Process | None = None
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._serve()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exits.aclose()

    @property
    def server(self) -> Process:
        assert self._server is not None
        return self._server

    async def go_on(self, until: int, victim: str) -> None:
        """Upload until so much of the file has been sent, then kill the client or the server."""
        chunk_bytes = CHUNKS[self._incarnations % len(CHUNKS)]
        self._incarnations += 1
        notes = self.folder / f"notes-{self._incarnations}"
        async with uploading(self.server, self.size, chunk_bytes, notes, self.url) as client:
            if self.url is None:
                assert client.process.stdout is not None
                self.url = (await client.process.stdout.readline()).decode().strip()
            await self.eventually(lambda: client.position >= until or client.has_ended, 60)
            assert not client.has_ended or client.position == self.size, "the client gave up"
            if victim == "server":
                await self._exits.aclose()  # SIGKILL
                await self.eventually(lambda: client.has_ended)
            elif victim == "client":
                client.process.kill()
            else:
                assert await client.process.wait() == 0
            await client.process.wait()
        self._note(client)
        if victim == "server":
            await self._serve()
        if victim:
            self.kills[victim] += 1
            self._before = client

    def _note(self, client: Client) -> None:
        """What this client sent although the one before had sent it already."""
        start, sent = tus_uploader.read_notes(client.notes)
        if self._before is not None and sent:
            again = self._before.position - start
            assert 0 <= again <= self._before.may_send_twice, f"{again} bytes were sent twice"
            self.sent_twice.append(again)

    async def _serve(self) -> None:
        self._exits = contextlib.AsyncExitStack()
        self._server = await self._exits.enter_async_context(started(self.database_url, self.folder / "data"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kills", "size"), [(2, 192 * MIB), pytest.param(10, 3072 * MIB, marks=pytest.mark.long)], ids=["4", "20"]
)
async def test_an_upload_survives_kills_of_its_client_and_of_the_server(
    new_database_url: str, tmp_path: Path, eventually: Eventually, kills: int, size: int
) -> None:
    (tmp_path / "data").mkdir()
    chance = random.Random(7)  # noqa: S311 - the same moments in every run
    victims = ["client", "server"] * kills
    chance.shuffle(victims)
    moments = sorted(chance.randrange(size) for _ in victims)
    expected = asyncio.create_task(asyncio.to_thread(tus_uploader.digests, size))
    async with Upload(new_database_url, tmp_path, size, eventually) as upload:
        for moment, victim in zip(moments, victims, strict=True):
            await upload.go_on(moment, victim)
        await upload.go_on(size, "")
        assert upload.url is not None
        path = upload.url.replace("/uploads/", "/images/")

        async def is_judged() -> bool:
            return (await shown())["status"] in ("active", "rejected")

        async def shown() -> dict[str, str]:
            headers = {"authorization": upload.server.headers["authorization"]}
            found: dict[str, str] = (await upload.server.http.get(path, headers=headers)).json()
            return found

        await eventually(is_judged, 60)
        image = await shown()
        assert image["status"] == "active", image
        assert (image["sha256"], image["sha512"]) == await expected
    assert upload.kills == {"client": kills, "server": kills}
    sys.stdout.write(f"sent twice, in KiB: {[again // 1024 for again in upload.sent_twice]}\n")


async def test_a_large_request_and_its_verification_take_little_memory(
    new_database_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    size = 192 * MIB
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in METADATA.items())

    async def body() -> AsyncIterator[bytes]:
        for number in range(size // MIB):
            yield tus_uploader.block(number)

    async with started(new_database_url, tmp_path) as service:
        headers = {"authorization": service.headers["authorization"], "tus-resumable": "1.0.0"}
        told = {**headers, "upload-length": str(size), "upload-metadata": metadata}
        path = (await service.http.post("/api/v1/uploads", headers=told)).headers["location"]
        before = service.memory_bytes("VmRSS")
        service.reset_peak()
        told = {**headers, "upload-offset": "0", "content-type": "application/offset+octet-stream"}
        answer = await service.http.patch(path, headers=told, content=body())
        assert answer.status_code == 204, answer.text

        async def is_active() -> bool:
            image = await service.http.get(path.replace("/uploads/", "/images/"), headers=headers)
            return bool(image.json()["status"] == "active")

        await eventually(is_active, 30)
        assert service.memory_bytes("VmHWM") - before < 64 * MIB
