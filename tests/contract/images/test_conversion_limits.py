"""What bounds a conversion: quotas, sizes, limits of the process, its owner's wish; and what is left then."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from services.images.service import filling as service_filling
from tests.contract.images.converting import (
    MIB,
    a_disk,
    as_format,
    content,
    convert,
    converted,
    failed,
    is_same_disk,
    needs_qemu_img,
    scattered,
    work_files,
)
from tests.contract.images.harness import Service, running
from tests.contract.images.importing import cancel, ended, nothing_is_left, operation, shown
from tests.corpora.images import disks

pytestmark = needs_qemu_img

Eventually = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(database_url, tmp_path_factory.mktemp("images"), max_file_size=128 * MIB) as service:
        yield service


async def test_without_a_converter_the_answer_says_what_to_install(new_database_url: str, tmp_path: Path) -> None:
    async with running(new_database_url, tmp_path, qemu_img="/nowhere/qemu-img") as service:
        user = await service.new_user()
        image = await service.image(user, a_disk(), filename="d.img")
        answer = await convert(service, user, image["id"], "qcow2")
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/converter-missing")
        assert "apt install qemu-utils" in answer.json()["detail"]
        assert service.used_bytes(user) == image["size_bytes"]


async def test_a_quota_is_kept_before_while_and_after(service: Service) -> None:
    disk = a_disk()
    user = await service.new_user(image_bytes=len(disk) + 3 * MIB)
    original = await service.image(user, disk, filename="d.img")
    problem = await failed(service, user, original["id"], "qcow2")
    assert problem["type"] == "/problems/quota-exceeded"
    assert f"the limit is {len(disk) + 3 * MIB}" in problem["detail"]
    assert service.used_bytes(user) == len(disk)
    small = await service.new_user(image_bytes=len(disk) + MIB)
    copy = await service.image(small, as_format(service.settings.common.data_dir, disk, "qcow2"))
    answer = await convert(service, small, copy["id"], "raw")  # a raw image's size is known at once
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/quota-exceeded")
    assert service.used_bytes(small) == copy["size_bytes"]


async def test_a_raw_image_larger_than_any_file_may_be_is_refused_at_once(service: Service) -> None:
    user = await service.new_user()
    large = await service.image(user, disks.qcow2(virtual_size=1 << 40))
    answer = await convert(service, user, large["id"], "raw")
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/image-too-large")
    assert "1.1 TB" in answer.json()["detail"]
    huge = await service.image(user, disks.qcow2(virtual_size=3 << 40))
    answer = await convert(service, user, huge["id"], "vhd")
    assert (answer.status_code, "2.2 TB" in answer.json()["detail"]) == (422, True)


async def test_a_disk_that_outgrows_its_estimate_gets_more_room_once(service: Service, tmp_path: Path) -> None:
    disk = scattered()
    user = await service.new_user(image_bytes=200 * MIB)
    original = await service.image(user, disk, filename="d.img")
    image = await converted(service, user, original["id"], "vhd")
    assert image["size_bytes"] > 64 * MIB
    assert is_same_disk(tmp_path, disk, await content(service, user, image["id"]), "vhd")
    assert service.used_bytes(user) == original["size_bytes"] + image["size_bytes"]
    poor = await service.new_user(image_bytes=100 * MIB)
    original = await service.image(poor, disk, filename="d.img")
    assert (await failed(service, poor, original["id"], "vhd"))["type"] == "/problems/quota-exceeded"


async def test_a_disk_that_outgrows_what_any_file_may_have_is_told_of(new_database_url: str, tmp_path: Path) -> None:
    async with running(new_database_url, tmp_path, max_file_size=64 * MIB) as service:
        user = await service.new_user()
        original = await service.image(user, scattered(), filename="d.img")
        problem = await failed(service, user, original["id"], "vhd")
        assert (problem["type"], problem["status"]) == ("/problems/conversion-outgrew", 413)
        assert "larger than 67.1 MB" in problem["detail"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"conversion_cpu_s": 1}, "more than 1 s of CPU time"),
        ({"conversion_memory_bytes": 48 * MIB}, "more memory than the allowed 50.3 MB"),
        ({"conversion_timeout_s": 0.2}, "longer than 0.2 s"),
    ],
    ids=["cpu", "memory", "wall"],
)
async def test_limits_bite(new_database_url: str, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    disk = disks.mbr_disk(MIB) + os.urandom(95 * MIB)
    async with running(new_database_url, tmp_path, max_file_size=128 * MIB, **options) as service:
        user = await service.new_user()
        original = await service.image(user, disk, filename="d.img")
        problem = await failed(service, user, original["id"], "qcow2", compress=True)
        assert problem["type"] == "/problems/conversion-failed"
        assert words in problem["detail"]
        assert service.used_bytes(user) == len(disk)


async def test_what_qemu_img_complains_of_is_told_without_the_servers_paths(
    new_database_url: str, tmp_path: Path
) -> None:
    async with running(new_database_url, tmp_path) as service:
        user = await service.new_user()
        damaged = disks.qcow2(file_size=256 * 1024)  # its tables are zeros, where qemu-img wants to read
        original = await service.image(user, damaged[:600] + b"\xff" * (len(damaged) - 600))
        problem = await failed(service, user, original["id"], "raw")
        assert "qemu-img could not convert the image: " in problem["detail"]


async def test_progress_is_told_and_a_cancelled_conversion_leaves_nothing(
    slow: Service, eventually: Eventually
) -> None:
    user = await slow.new_user()
    original = await slow.image(user, disks.mbr_disk(MIB) + os.urandom(63 * MIB), filename="d.img")
    answer = await convert(slow, user, original["id"], "qcow2")
    operation_id, image_id = answer.json()["id"], answer.json()["image"]["id"]

    async def is_told() -> bool:
        found = await operation(slow, user, operation_id)
        return 0 < found["progress"] < 0.9 and "% converted" in found["message"]

    await eventually(is_told)
    assert slow.used_bytes(user) > original["size_bytes"] + 63 * MIB
    (folder,) = work_files(slow)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(in_folder(folder)) == 1
    assert (await shown(slow, user, image_id))["status"] == "uploading"
    assert (await cancel(slow, user, operation_id)).status_code == 202
    assert (await ended(slow, user, operation_id))["state"] == "cancelled"
    assert in_folder(folder) == work_files(slow) == []
    assert (await shown(slow, user, image_id))["status"] == "rejected"
    assert slow.used_bytes(user) == original["size_bytes"]
    assert nothing_is_left(slow, await slow.new_user(), image_id)


def in_folder(folder: Path) -> list[str]:
    """The programs that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append((process / "comm").read_text().strip())
        except OSError:  # gone meanwhile
            continue
    return found


async def test_deleting_the_image_ends_its_conversion(
    slow: Service, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_filling, "_LOOK_EVERY_S", 0.1)
    user = await slow.new_user()
    original = await slow.image(user, disks.mbr_disk(MIB) + os.urandom(63 * MIB), filename="d.img")
    begun = (await convert(slow, user, original["id"], "qcow2")).json()
    await eventually(lambda: any((folder / "output").exists() for folder in work_files(slow)))
    url = f"/api/v1/images/{begun['image']['id']}"
    assert (await slow.http.delete(url, headers=slow.as_user(user))).status_code == 204
    end = await ended(slow, user, begun["id"], deadline_s=10)  # it would have taken 16 s
    assert (end["state"], end["error"]["type"]) == ("failed", "/problems/upload-gone")
    assert slow.used_bytes(user) == original["size_bytes"]
    assert work_files(slow) == []


async def test_one_conversion_runs_at_a_time_and_uploads_do_not_wait_for_it(
    slow: Service, eventually: Eventually
) -> None:
    user = await slow.new_user()
    original = await slow.image(user, disks.mbr_disk(MIB) + os.urandom(31 * MIB), filename="d.img")
    answers = await asyncio.gather(*(convert(slow, user, original["id"], "qcow2") for _ in range(5)))
    ids = [answer.json()["id"] for answer in answers]

    async def states() -> list[str]:
        return sorted([(await operation(slow, user, one))["state"] for one in ids])

    async def one_runs() -> bool:
        return await states() == ["pending"] * 4 + ["running"]

    await eventually(one_runs)
    await eventually(lambda: len(work_files(slow)) == 1)
    await slow.image(user)
    for one in ids:
        await cancel(slow, user, one)
        await ended(slow, user, one)
    assert slow.used_bytes(user) == original["size_bytes"] + disks_bytes()


def disks_bytes() -> int:
    return len(disks.qcow2())
