"""Clients of a tus upload that leave, fall silent, come twice, or come to two processes."""

import asyncio
import fcntl
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.contract.images.harness import Service, running
from tests.contract.images.tus_client import MIB, Tus, checksum, part_of
from tests.corpora.images import disks

Eventually = Callable[..., Awaitable[None]]
DISK = disks.raw_disk(3 * MIB)
HALF = len(DISK) // 2


@pytest.fixture
async def tus(service: Service) -> Tus:
    return Tus(service, await service.new_user())


async def test_deleting_the_image_ends_the_upload_and_whoever_writes_to_it(
    service: Service, tus: Tus, eventually: Eventually
) -> None:
    for delete in (
        tus.delete,
        lambda path: service.http.delete(path.replace("uploads", "images"), headers=tus.headers),
    ):
        path = await tus.begin(len(DISK))
        writing = tus.open(path, 0)
        writing.send(DISK[:HALF])
        await eventually(lambda path=path: part_of(service, path).exists())
        assert (await delete(path)).status_code == 204
        writing.send(DISK[HALF:], more=False)
        assert await writing.status() == 404
        assert service.used_bytes(tus.user_id) == 0
        assert not part_of(service, path).exists()


async def test_what_arrived_counts_when_the_client_goes_away(tus: Tus, eventually: Eventually) -> None:
    path = await tus.begin(len(DISK))
    writing = tus.open(path, 0)
    for start in range(0, HALF, 10_000):
        writing.send(DISK[start : min(HALF, start + 10_000)])
    writing.leave()
    await writing.status()
    assert await tus.offset(path) == HALF
    last = tus.open(path, HALF)
    last.send(DISK[HALF:])
    last.leave()  # before it could say that this was all
    await last.status()
    await eventually(lambda: tus.is_now(path, "active"))
    assert (await tus.image(path))["sha256"] == hashlib.sha256(DISK).hexdigest()


async def test_bytes_under_a_checksum_count_all_or_not_at_all(tus: Tus) -> None:
    path = await tus.begin(len(DISK))
    writing = tus.open(path, 0, upload_checksum=checksum("sha1", DISK[:HALF]))
    writing.send(DISK[: HALF - 1])
    writing.leave()
    await writing.status()
    assert await tus.offset(path) == 0


async def test_a_request_that_is_cancelled_keeps_what_arrived(
    service: Service, tus: Tus, eventually: Eventually
) -> None:
    path = await tus.begin(8 * MIB)
    writing = tus.open(path, 0)
    for _ in range(0, 5 * MIB, 65_536):
        writing.send(bytes(65_536))
    await eventually(lambda: part_of(service, path).exists() and part_of(service, path).stat().st_size >= 4 * MIB)
    writing.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing.task
    assert await tus.offset(path) >= 4 * MIB


async def test_a_silent_client_is_given_up_and_what_it_sent_counts(new_database_url: str, tmp_path: Path) -> None:
    async with running(new_database_url, tmp_path, upload_idle_s=0.2) as service:
        tus = Tus(service, await service.new_user())
        path = await tus.begin(len(DISK))
        writing = tus.open(path, 0)
        writing.send(DISK[:HALF])
        assert await writing.status() == 400
        assert b"upload-interrupted" in writing.body
        assert await tus.offset(path) == HALF


async def test_a_second_client_takes_a_half_open_upload_over(
    service: Service, tus: Tus, eventually: Eventually
) -> None:
    path = await tus.begin(len(DISK))
    await tus.patch(path, 0, DISK[:MIB])
    silent = tus.open(path, MIB)
    silent.send(b"never to be heard of again")
    await eventually(
        lambda: service.rows("SELECT writer FROM uploads WHERE id = %s", path.rpartition("/")[2]) == [(2,)]
    )
    answer = await tus.patch(path, MIB, DISK[MIB:])
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(len(DISK)))
    assert await silent.status() == 409
    assert b"upload-taken-over" in silent.body
    await eventually(lambda: tus.is_now(path, "active"))
    assert (await tus.image(path))["sha256"] == hashlib.sha256(DISK).hexdigest()


async def test_a_request_that_would_be_refused_takes_nothing_over(tus: Tus, eventually: Eventually) -> None:
    path = await tus.begin(len(DISK))
    writing = tus.open(path, 0)
    writing.send(DISK[:HALF])
    await eventually(lambda: tus.is_now(path, "uploading"))
    assert (await tus.patch(path, 5, b"x")).status_code == 409
    assert (await tus.patch(path, 0, DISK + b"x")).status_code == 413
    writing.send(DISK[HALF:], more=False)
    assert await writing.status() == 204


async def test_many_clients_on_one_upload_make_one_whole_file(tus: Tus, eventually: Eventually) -> None:
    path = await tus.begin(len(DISK))

    async def upload() -> None:
        while (looked := await tus.head(path)).headers.get("upload-offset") != str(len(DISK)):
            offset = int(looked.headers["upload-offset"])
            answer = await tus.patch(path, offset, DISK[offset : offset + 300_000])
            assert answer.status_code in (204, 409), answer.text

    await asyncio.gather(*(upload() for _ in range(5)))
    await eventually(lambda: tus.is_now(path, "active"))
    assert (await tus.image(path))["sha256"] == hashlib.sha256(DISK).hexdigest()


async def test_another_process_is_told_to_wait_until_the_one_that_writes_has_let_go(
    new_database_url: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with (
        running(new_database_url, tmp_path) as service,
        running(new_database_url, tmp_path) as elsewhere,
    ):
        tus = Tus(service, user := await service.new_user())
        other = Tus(elsewhere, user)
        path = await tus.begin(len(DISK))
        silent = tus.open(path, 0)
        silent.send(DISK[:HALF])
        await eventually(lambda: part_of(service, path).exists())
        busy = await other.patch(path, 0, DISK)
        assert (busy.status_code, busy.json()["type"]) == (423, "/problems/upload-busy")
        assert busy.headers["retry-after"] == "1"
        assert await silent.status() == 409  # its bytes would not count any more
        assert (await other.patch(path, 0, DISK)).status_code == 204
        await eventually(lambda: other.is_now(path, "active"))


async def test_a_file_that_somebody_else_has_locked_is_busy(service: Service, tus: Tus) -> None:
    path = await tus.begin(len(DISK))
    await tus.patch(path, 0, DISK[:HALF])
    with part_of(service, path).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert (await tus.patch(path, HALF, DISK[HALF:])).status_code == 423
    assert (await tus.patch(path, HALF, DISK[HALF:])).status_code == 204
