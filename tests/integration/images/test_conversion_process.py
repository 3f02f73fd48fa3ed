"""The converter as a process: what it may, what it is refused, and that it never outlives its service."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from libs.common.ids import uuid7
from services.images.adapters.folder_blobs import FolderBlobStore
from services.images.adapters.qemu_img import Limits, QemuImg
from services.images.adapters.work_folders import WorkFolders
from services.images.domain import Format, Status
from services.images.errors import ConversionFailed, ConverterMissing, ImageNotFound, ImageState
from services.images.ports import LocalFiles, Master
from tests.contract.images.converting import MIB, QEMU_IMG, SLOW, is_same_disk, needs_qemu_img, program
from tests.corpora.images import disks
from tests.corpora.images.hostile import HOSTILE
from tests.integration.images.test_import_processes import ended
from tests.integration.images.test_processes import Process, files, rows, started

pytestmark = needs_qemu_img

Eventually = Callable[..., Awaitable[None]]
LIMITS = Limits(memory_bytes=1 << 30, cpu_s=20, wall_s=10)


class Noting(QemuImg):
    """The converter, which remembers how it was called."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls: list[list[str]] = []

    async def call(self, arguments: Sequence[str], *rest: Any, **options: Any) -> bytes:
        self.calls.append(list(arguments))
        return await super().call(arguments, *rest, **options)


@pytest.fixture
async def blobs(tmp_path: Path) -> FolderBlobStore:
    store = FolderBlobStore(tmp_path / "images")
    await store.prepare()
    return store


@pytest.fixture
async def folders(tmp_path: Path) -> WorkFolders:
    made = WorkFolders(tmp_path / "work")
    await made.prepare()
    return made


async def master(blobs: FolderBlobStore, content: bytes, status: Status, form: Format) -> Master:
    """A stored file, and what its image's record says."""
    upload_id = uuid7()
    staged = await blobs.stage(upload_id)
    await staged.write(content)
    key = await staged.publish("ab" * 32)
    return Master(upload_id, status, form, key, "ab" * 32, len(content))


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.ACTIVE])
async def test_no_file_that_did_not_pass_verification_ever_reaches_the_converter(
    blobs: FolderBlobStore, folders: WorkFolders, status: Status
) -> None:
    tool = Noting(QEMU_IMG, folders, blobs, LIMITS)
    for hostile in HOSTILE[:5]:
        refused = await master(blobs, hostile.content, status, Format.QCOW2)
        with pytest.raises(ImageState):
            async with tool.workshop(refused):
                pytest.fail("it was let in")
    assert tool.calls == []
    assert list(folders.root.iterdir()) == []


async def test_the_converter_is_told_the_format_of_each_file_in_every_call(
    blobs: FolderBlobStore, folders: WorkFolders
) -> None:
    tool = Noting(QEMU_IMG, folders, blobs, LIMITS)
    source = await master(blobs, disks.mbr_disk(), Status.ACTIVE, Format.RAW)

    async def nobody(_fraction: float) -> None: ...

    async with tool.workshop(source) as workshop:
        for target in (Format.QCOW2, Format.VMDK, Format.VHD):
            await workshop.estimate(target)
            await workshop.convert(target, compress=False, limit_bytes=64 * MIB, progress=nobody)
    called = [" ".join(call) for call in tool.calls]
    assert len(called) == 6
    assert all(" -f raw -O " in call for call in called)
    assert all(call.endswith((" source", " source output")) for call in called)


async def test_a_program_gets_its_limits_and_nothing_else(
    blobs: FolderBlobStore, folders: WorkFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELAR_SECRET", "s3cr3t")
    cat = QemuImg("cat", folders, blobs, LIMITS)
    assert await cat.call(["/proc/self/environ"], folders.root) == b""
    status = (await cat.call(["/proc/self/status"], folders.root)).decode()
    assert "NoNewPrivs:\t1" in status
    fields = (await cat.call(["/proc/self/stat"], folders.root)).decode().rpartition(") ")[2].split()
    own, group, session, niceness = os.getpid(), int(fields[2]), int(fields[3]), int(fields[16])
    assert (group, niceness) == (session, 15)
    assert session not in (own, os.getsid(0))
    limits = (await cat.call(["/proc/self/limits"], folders.root, limit_bytes=12_345)).decode()
    told = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert told["Max address space"] == [str(1 << 30)] * 2
    assert told["Max cpu time"] == ["20", "25"]
    assert told["Max file size"] == ["12345"] * 2
    assert told["Max open files"] == ["64"] * 2
    assert told["Max core file size"] == ["0"] * 2
    listing = QemuImg("ls", folders, blobs, LIMITS)
    assert (await listing.call(["/proc/self/fd"], folders.root)).split() == [b"0", b"1", b"2", b"3"]  # 3: of ls itself
    assert await QemuImg("readlink", folders, blobs, LIMITS).call(["/proc/self/fd/0"], folders.root) == b"/dev/null\n"


async def test_a_program_that_hangs_or_floods_is_ended_with_all_that_it_started(
    blobs: FolderBlobStore, folders: WorkFolders, tmp_path: Path, eventually: Eventually
) -> None:
    limits = Limits(memory_bytes=1 << 30, cpu_s=20, wall_s=0.5)
    hanging = QemuImg(program(tmp_path, "#!/bin/sh\n/bin/sleep 1000 & /bin/sleep 1000\n"), folders, blobs, limits)
    with pytest.raises(ConversionFailed, match=r"longer than 0\.5 s"):
        await hanging.call([], folders.root)
    await eventually(lambda: working_in(folders.root) == [])
    flood = QemuImg(program(tmp_path, "#!/bin/sh\n/usr/bin/yes complaint >&2\n"), folders, blobs, limits)
    with pytest.raises(ConversionFailed):
        await flood.call([], folders.root)


def working_in(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
    return found


async def test_a_missing_launcher_is_told_of_like_a_missing_converter(
    blobs: FolderBlobStore, folders: WorkFolders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConverterMissing, match="apt install util-linux"):
        QemuImg(QEMU_IMG, folders, blobs, LIMITS).require()


async def test_a_blob_is_lent_and_adopted_without_a_copy(blobs: FolderBlobStore, tmp_path: Path) -> None:
    assert isinstance(blobs, LocalFiles)
    content = os.urandom(MIB)
    source = await master(blobs, content, Status.ACTIVE, Format.RAW)
    lent = tmp_path / "lent"
    assert await blobs.lend(source.key, lent)
    assert lent.stat().st_nlink == 2
    await blobs.delete(source.key)
    assert lent.read_bytes() == content  # whoever borrowed it has it
    with pytest.raises(ImageNotFound):
        await blobs.lend(source.key, tmp_path / "another")
    upload_id = uuid7()
    begun = await blobs.resume(upload_id, 0)
    await begun.write(b"half a file")
    await begun.close()
    assert await blobs.adopt(upload_id, lent)
    assert not lent.exists()
    key = await blobs.publish(upload_id, "cd" * 32, size_bytes=MIB)
    reader = await blobs.open(key)
    assert b"".join([piece async for piece in reader.read(0, MIB)]) == content
    await reader.close()


async def test_leftovers_are_swept_and_what_is_in_use_is_not(folders: WorkFolders) -> None:
    left = folders.root / "left.0"
    left.mkdir()
    (left / "output").write_bytes(b"x" * 1000)
    async with folders.new("used") as used:
        (used / "source").write_bytes(b"x")
        await WorkFolders(folders.root).sweep()  # as another process does
        assert list(folders.root.iterdir()) == [used]
        assert (used / "source").exists()
    assert list(folders.root.iterdir()) == []


@pytest.fixture(autouse=True)
def empty(database_url: str) -> None:
    """Each test here has the whole database to itself."""
    with psycopg.connect(database_url) as connection:
        known = connection.execute("SELECT to_regclass('images')").fetchone()
        if known is not None and known[0] is not None:
            connection.execute(
                "TRUNCATE images, image_members, blobs, uploads, quota_accounts, operations, outbox, inbox"
            )


@contextlib.asynccontextmanager
async def with_converter(
    database_url: str, folder: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Process]:
    monkeypatch.setenv("TELAR_IMAGES_QEMU_IMG", program(folder, script))
    async with started(database_url, folder) as service:
        yield service


async def uploaded(service: Process, content: bytes) -> dict[str, Any]:
    headers = {"authorization": service.headers["authorization"]}
    answer = await service.http.post(
        "/api/v1/images/upload",
        headers=headers,
        data={"name": "d", "os_type": "Debian"},
        files={"file": ("d.img", content)},
    )
    assert answer.status_code == 201, answer.text
    image: dict[str, Any] = answer.json()["image"]
    return image


async def test_a_killed_service_takes_its_converter_along_and_the_next_one_begins_anew(
    database_url: str, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, work = disks.mbr_disk(MIB) + os.urandom(31 * MIB), tmp_path / "images-work"
    async with with_converter(database_url, tmp_path, SLOW, monkeypatch) as service:
        headers = {"authorization": service.headers["authorization"]}
        original = await uploaded(service, disk)
        url = f"/api/v1/images/{original['id']}/convert"
        answer = await service.http.post(url, headers=headers, json={"format": "qcow2"})
        begun = answer.json()
        await eventually(lambda: any(path.stat().st_size > MIB for path in work.glob("*/output")))
        (converter,) = working_in(work)
        service.process.send_signal(signal.SIGKILL)
        await service.process.wait()
        await eventually(lambda: not Path(f"/proc/{converter}").exists() or is_dead(converter))
    assert len(list(work.iterdir())) == 1
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE operations SET lease_until = now() - interval '1 second' WHERE state = 'running'")
    async with with_converter(database_url, tmp_path, f'#!/bin/sh\nexec {QEMU_IMG} "$@"\n', monkeypatch) as service:
        end = await ended(service, begun["id"])
        assert end["state"] == "succeeded", end
        headers = {"authorization": service.headers["authorization"]}
        download = f"/api/v1/images/{begun['image']['id']}/download"
        content = (await service.http.get(download, headers=headers)).content
        await eventually(lambda: list(work.iterdir()) == [])
    assert is_same_disk(tmp_path, disk, content, "qcow2")
    used = rows(database_url, "SELECT (used->>'image_bytes')::bigint FROM quota_accounts")
    assert used == [(len(disk) + len(content),)]
    assert len(files(tmp_path / "images")) == 2


def is_dead(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    return True


async def test_a_service_that_is_asked_to_end_ends_its_converter_within_the_grace(
    database_url: str, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "images-work"
    async with with_converter(database_url, tmp_path, SLOW, monkeypatch) as service:
        original = await uploaded(service, disks.mbr_disk(MIB) + os.urandom(31 * MIB))
        headers = {"authorization": service.headers["authorization"]}
        url = f"/api/v1/images/{original['id']}/convert"
        await service.http.post(url, headers=headers, json={"format": "qcow2"})
        await eventually(lambda: working_in(work) != [])
        service.process.send_signal(signal.SIGTERM)
        await eventually(lambda: service.process.returncode is not None, 10)
    assert working_in(work) == []
    assert list(work.iterdir()) == []
    assert rows(database_url, "SELECT state, lease_holder FROM operations") == [("running", None)]
