"""Bad uploads over real connections: each ends in a clear problem, soon, and leaves nothing behind."""

import asyncio
import contextlib
import hashlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cli.process import Running, listen, service_config
from libs.common.testing.needs import require_root
from services.images.domain import Format
from tests.contract.images.harness import Service, running
from tests.corpora.images import disks

IDLE_S = 0.8
GB = 1000**3
LIMIT = 20 * 1024**3

Eventually = Callable[..., Awaitable[None]]


@dataclass
class Wire:
    """A service that listens on a real port."""

    service: Service
    port: int

    def is_clean(self, user: str) -> bool:
        left = self.service.rows(
            "SELECT (SELECT count(*) FROM uploads), (SELECT count(*) FROM images WHERE owner_id = %s)", user
        )
        return left == [(0, 0)] and self.service.used_bytes(user) == 0 and self.service.files() == []

    async def open(self, user: str, *, length: int | None, **headers: str) -> "Sending":
        """Begin an upload: its head is sent, with a length or chunked."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        fields = {"content-type": "multipart/form-data; boundary=edge", **self.service.as_user(user), **headers}
        lines = ["POST /api/v1/images/upload HTTP/1.1", "host: images", framing]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return Sending(reader, writer, chunked=length is None)

    async def post(self, user: str, body: bytes, *, chunked: bool = False) -> "Answer":
        sending = await self.open(user, length=None if chunked else len(body))
        await sending.send(body)
        await sending.end()
        return await sending.answer()


@dataclass
class Answer:
    status: int
    document: dict[str, Any] = field(default_factory=dict)


@dataclass
class Sending:
    """A request on its way."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    chunked: bool

    async def send(self, data: bytes) -> None:
        """Send, unless the service has answered already and closed."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)
            await self.writer.drain()

    async def end(self) -> None:
        if self.chunked:
            with contextlib.suppress(ConnectionError):
                self.writer.write(b"0\r\n\r\n")
                await self.writer.drain()

    async def answer(self, timeout_s: float = 10) -> Answer:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), timeout_s)
        fields = dict(line.lower().split(b": ", 1) for line in head[:-4].split(b"\r\n")[1:])
        body = await self.reader.readexactly(int(fields.get(b"content-length", 0)))
        self.writer.close()
        assert fields[b"content-type"].startswith((b"application/problem+json", b"application/json"))
        return Answer(int(head.split(b" ", 2)[1]), json.loads(body))

    def leave(self) -> None:
        """Go away without a word."""
        self.writer.transport.abort()


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    return f'--edge\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"


def opening(filename: str = "a.img", **fields: str) -> bytes:
    said = {"name": "n", "os_type": "o", **fields}
    return b"".join(part(name, value.encode()) for name, value in said.items()) + part("file", b"", filename)[:-2]


def form(content: bytes, filename: str = "a.img", **fields: str) -> bytes:
    return opening(filename, **fields) + content + b"\r\n--edge--\r\n"


@contextlib.asynccontextmanager
async def listening(service: Service) -> AsyncIterator[Wire]:
    bound = listen("127.0.0.1", 0)
    server = Running(service_config(service.app, lifespan="off"), bound)
    await server.start()
    try:
        yield Wire(service, bound.getsockname()[1])
    finally:
        await server.stop()
        bound.close()


@pytest.fixture(scope="module")
async def wire(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Wire]:
    folder = tmp_path_factory.mktemp("images")
    options = {"upload_idle_s": IDLE_S, "max_file_size": LIMIT}
    async with running(database_url, folder, **options) as service, listening(service) as wire:
        yield wire


@pytest.mark.parametrize(
    "filename",
    [
        "disk.exe",
        "disk",
        "",
        "qcow2",
        "disk.qcow2.exe",
        "disk.img.gz",
        "disk.vhdx",
        "disk.vdi",
        "disk.ova",
        "disk.img ",
    ],
)
async def test_a_wrong_extension_is_refused_with_those_that_are_right(wire: Wire, filename: str) -> None:
    user = await wire.service.new_user()
    answer = await wire.post(user, form(disks.mbr_disk(), filename))
    assert answer.status == 422
    for extension in (*Format, "img"):
        assert f".{extension}" in answer.document["detail"]
    assert answer.document["errors"][0]["pointer"] == "/body/file"
    assert wire.is_clean(user)


@pytest.mark.parametrize(
    ("filename", "content", "told"),
    [
        ("a.qcow2", disks.vmdk(), "declared as qcow2, but its content is VMDK; let its name end in .vmdk"),
        ("a.iso", disks.qcow2(), "declared as iso, but its content is QCOW2; let its name end in .qcow2"),
        ("a.vmdk", disks.mbr_disk(), "declared as vmdk, but its content is a partitioned disk"),
        ("a.img", disks.dynamic_vhd(), "declared as raw, but its content is VHD; let its name end in .vhd"),
    ],
)
async def test_a_wrong_format_is_refused_with_the_right_one(
    wire: Wire, filename: str, content: bytes, told: str
) -> None:
    user = await wire.service.new_user()
    answer = await wire.post(user, form(content, filename))
    assert (answer.status, answer.document["type"]) == (422, "/problems/image-rejected")
    assert told in answer.document["detail"]
    assert wire.is_clean(user)


async def test_another_digest_than_announced_is_refused_with_the_one_that_arrived(wire: Wire) -> None:
    user, content = await wire.service.new_user(), disks.mbr_disk()
    answer = await wire.post(user, form(content, sha256="ab" * 32))
    assert (answer.status, answer.document["type"]) == (422, "/problems/digest-mismatch")
    assert hashlib.sha256(content).hexdigest() in answer.document["detail"]
    assert wire.is_clean(user)


async def test_a_declared_length_beyond_the_limit_is_refused_before_the_body_comes(wire: Wire) -> None:
    user = await wire.service.new_user()
    answer = await (await wire.open(user, length=LIMIT + 100_000)).answer()  # no byte of the body is ever sent
    assert (answer.status, answer.document["type"]) == (413, "/problems/image-too-large")
    assert "21.5 GB" in answer.document["detail"]
    assert wire.is_clean(user)


async def test_an_undeclared_length_beyond_the_limit_is_refused_when_it_is_reached(
    new_database_url: str, tmp_path: Path
) -> None:
    async with running(new_database_url, tmp_path, max_file_size=3 << 20) as service, listening(service) as wire:
        user = await service.new_user()
        sending = await wire.open(user, length=None)
        await sending.send(opening())
        for _ in range(64):
            await sending.send(bytes(1 << 20))
        answer = await sending.answer()
        assert (answer.status, answer.document["type"]) == (413, "/problems/image-too-large")
        assert "3.1 MB" in answer.document["detail"]
        assert wire.is_clean(user)


async def test_twenty_gigabytes_are_refused_at_once_if_the_quota_has_no_room(wire: Wire) -> None:
    user = await wire.service.new_user(image_bytes=5 * GB)
    answer = await (await wire.open(user, length=20 * GB)).answer()
    assert (answer.status, answer.document["type"]) == (409, "/problems/quota-exceeded")
    for number in (str(5 * GB), "left"):
        assert number in answer.document["detail"]
    assert wire.is_clean(user)


async def test_twenty_gigabytes_are_reserved_while_they_come_and_given_back_when_the_client_goes(
    wire: Wire, eventually: Eventually
) -> None:
    user = await wire.service.new_user(image_bytes=25 * GB)
    sending = await wire.open(user, length=20 * GB)
    await sending.send(opening() + bytes(4 << 20))
    await eventually(lambda: 19 * GB < wire.service.used_bytes(user) <= 20 * GB)
    second = await (await wire.open(user, length=20 * GB)).answer()
    assert second.status == 409
    sending.leave()
    await eventually(lambda: wire.is_clean(user))


async def test_the_quota_is_told_in_numbers(wire: Wire) -> None:
    content = disks.mbr_disk()
    user = await wire.service.new_user(image_bytes=len(content) - 1)
    answer = await wire.post(user, form(content))
    assert (answer.status, answer.document["type"]) == (409, "/problems/quota-exceeded")
    assert f"would make {len(content)}, the limit is {len(content) - 1}" in answer.document["detail"]
    assert wire.is_clean(user)


@pytest.mark.parametrize("sent_bytes", [0, 300, 100_000, 9 << 20])
async def test_a_client_that_goes_away_leaves_nothing(wire: Wire, eventually: Eventually, sent_bytes: int) -> None:
    user = await wire.service.new_user()
    sending = await wire.open(user, length=64 << 20)
    await sending.send((opening() + bytes(sent_bytes))[: sent_bytes or 10])
    await eventually(lambda: wire.service.rows("SELECT count(*) FROM uploads") == [(1,)])
    assert not wire.is_clean(user)
    sending.leave()
    await eventually(lambda: wire.is_clean(user))
    assert (await wire.service.http.get("/api/v1/images", headers=wire.service.as_user(user))).json()["items"] == []


async def test_a_client_that_falls_silent_is_told_so(wire: Wire) -> None:
    user = await wire.service.new_user()
    sending = await wire.open(user, length=64 << 20)
    await sending.send(opening() + bytes(3 << 20))
    answer = await sending.answer()
    assert (answer.status, answer.document["type"]) == (400, "/problems/upload-interrupted")
    assert "send the file again" in answer.document["detail"]
    assert wire.is_clean(user)


async def test_a_slow_client_that_keeps_sending_is_served(wire: Wire, eventually: Eventually) -> None:
    user, content = await wire.service.new_user(), disks.mbr_disk(64 * disks.KIB)
    body = form(content)
    sending = await wire.open(user, length=len(body))
    began = time.monotonic()
    step = len(body) // 6 + 1
    for number, start in enumerate(range(0, len(body), step), 1):
        await sending.send(body[start : start + step])
        due = began + number * IDLE_S / 3
        await eventually(lambda due=due: time.monotonic() > due)
    answer = await sending.answer()
    assert time.monotonic() - began > IDLE_S
    assert answer.status == 201, answer.document
    image = answer.document["image"]
    assert image["sha256"] == hashlib.sha256(content).hexdigest()
    path = f"/api/v1/images/{image['id']}"
    assert (await wire.service.http.delete(path, headers=wire.service.as_user(user))).status_code == 204


@pytest.mark.parametrize(
    "body",
    [
        b"--edge\r\n" + b"a: b\r\n" * 100_000,
        b"--edge\r\n" + b"x" * 700_000 + b": b\r\n",
        b"--edge\r\na: " + b"x" * 700_000,
        b"--edge\r\n\r\n\r\n" * 100_000,
        part("file", b"", "x" * 700_000),
        part("name", b"x" * 700_000),
    ],
    ids=["100k headers", "a long name", "a long value", "100k parts", "a long file name", "a long field"],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_form_made_to_exhaust_is_refused_with_little_work(wire: Wire, body: bytes, *, chunked: bool) -> None:
    user = await wire.service.new_user()
    began_s = time.process_time()
    answer = await wire.post(user, body + b"--edge--\r\n", chunked=chunked)
    assert answer.status in (400, 422)
    assert time.process_time() - began_s < 2
    assert wire.is_clean(user)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    require_root("mounting a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True)


async def test_a_full_disk_is_told_and_what_fits_is_still_taken(new_database_url: str, small_disk: Path) -> None:
    async with running(new_database_url, small_disk) as service, listening(service) as wire:
        user = await service.new_user()
        sending = await wire.open(user, length=len(opening()) + (32 << 20) + 12)
        await sending.send(opening() + bytes(32 << 20) + b"\r\n--edge--\r\n")
        answer = await sending.answer()
        assert (answer.status, answer.document["type"]) == (507, "/problems/blob-store-full")
        assert "full" in answer.document["detail"]
        assert wire.is_clean(user)
        content = disks.mbr_disk(9 * disks.MIB)
        assert (await wire.post(user, form(content))).status == 201
        assert (await wire.post(user, form(content))).status == 507
        assert service.used_bytes(user) == len(content)
        assert len(service.files()) == 1
