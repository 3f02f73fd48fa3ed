"""What becomes of a tus upload: its image, its ends, what goes wrong on the server, and what is swept."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from libs.common.db import DatabaseUnavailable
from libs.common.testing.serving import user_event
from libs.common.uow import UnitOfWork
from services.images.adapters import folder_blobs
from services.images.service import Verification
from tests.contract.images.harness import Service, running
from tests.contract.images.tus_client import MIB, Tus, checksum, encoded, part_of
from tests.corpora.images import disks

Eventually = Callable[..., Awaitable[None]]
DISK = disks.raw_disk(3 * MIB)
HALF = len(DISK) // 2
LEASE_S = 2.0


@pytest.fixture
async def tus(service: Service) -> Tus:
    return Tus(service, await service.new_user())


def told_of(service: Service, path: str) -> list[str]:
    """What was said of an upload's image on the bus."""
    events = [event for event in service.heard if event.subject == path.rpartition("/")[2]]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return [event.type.split(".")[2] for event in events]


async def test_an_image_is_deleted_even_if_its_staged_file_cannot_be_removed(service: Service, tus: Tus) -> None:
    path = await tus.begin(len(DISK))
    await tus.patch(path, 0, DISK[:HALF])
    part_of(service, path).unlink()
    part_of(service, path).mkdir()
    image = f"/api/v1/images/{path.rpartition('/')[2]}"
    assert (await service.http.delete(image, headers=tus.headers)).status_code == 204
    assert service.used_bytes(tus.user_id) == 0
    part_of(service, path).rmdir()


async def test_the_last_byte_begins_the_verification_and_the_file_becomes_an_image(
    service: Service, tus: Tus, eventually: Eventually
) -> None:
    path = await tus.begin(len(DISK))
    assert (await tus.patch(path, 0, DISK[:HALF])).headers.get("link") is None
    assert (await tus.image(path))["status"] == "uploading"
    answer = await tus.patch(path, HALF, DISK[HALF:])
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["upload-offset"] == str(len(DISK))
    assert "upload-expires" not in answer.headers
    operation, relation = answer.headers["link"].split("; ")
    assert relation == 'rel="monitor"'
    followed = await service.http.get(operation.strip("<>"), headers=tus.headers)
    assert followed.json()["kind"] == "image.verify"
    await eventually(lambda: tus.is_now(path, "active"))
    image = await tus.image(path)
    assert image["sha256"] == hashlib.sha256(DISK).hexdigest()
    assert image["sha512"] == hashlib.sha512(DISK).hexdigest()
    assert image["size_bytes"] == service.used_bytes(tus.user_id) == len(DISK)
    await eventually(lambda: told_of(service, path) == ["created", "activated"])
    assert not part_of(service, path).exists()


async def test_a_client_that_lost_the_last_answer_learns_that_it_is_done(
    tus: Tus, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()
    verify = Verification.verify

    async def later(verification: Verification, *arguments: Any) -> Any:
        await go_on.wait()
        return await verify(verification, *arguments)

    monkeypatch.setattr(Verification, "verify", later)
    path = await tus.upload(DISK)
    for status in ("verifying", "active"):
        await eventually(lambda status=status: tus.is_now(path, status))
        looked = await tus.head(path)
        assert looked.status_code == 200
        assert looked.headers["upload-offset"] == looked.headers["upload-length"] == str(len(DISK))
        assert "upload-expires" not in looked.headers
        nothing = await tus.patch(path, len(DISK), b"")
        assert (nothing.status_code, nothing.headers["upload-offset"]) == (204, str(len(DISK)))
        assert (await tus.patch(path, len(DISK), b"x")).status_code == 413
        assert (await tus.patch(path, HALF, DISK[HALF:])).status_code == 409
        go_on.set()


async def test_a_refused_file_gives_its_space_back_and_its_record_says_why(
    service: Service, tus: Tus, eventually: Eventually
) -> None:
    path = await tus.upload(disks.qcow2())  # declared as raw
    await eventually(lambda: tus.is_now(path, "rejected"))
    image = await tus.image(path)
    assert "QCOW2" in image["reason"]
    looked = await tus.head(path)
    assert looked.status_code == 410
    assert "upload-offset" not in looked.headers
    refused = await tus.patch(path, 0, b"x")
    assert (refused.status_code, refused.json()["detail"]) == (410, image["reason"])
    assert service.used_bytes(tus.user_id) == 0
    await eventually(lambda: told_of(service, path) == ["created", "rejected"])
    assert (await tus.delete(path)).status_code == 204
    assert (await tus.head(path)).status_code == 404
    await eventually(lambda: told_of(service, path) == ["created", "rejected", "deleted"])


async def test_a_file_with_another_digest_than_announced_is_refused(tus: Tus, eventually: Eventually) -> None:
    announced = encoded(filename="disk.img", os_type="x", sha256="0" * 64)
    path = await tus.upload(DISK, announced)
    await eventually(lambda: tus.is_now(path, "rejected"))
    assert hashlib.sha256(DISK).hexdigest() in (await tus.image(path))["reason"]


async def test_a_terminated_upload_leaves_nothing(service: Service, tus: Tus, eventually: Eventually) -> None:
    path = await tus.begin(len(DISK))
    await tus.patch(path, 0, DISK[:HALF])
    assert part_of(service, path).exists()
    answer = await tus.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert service.used_bytes(tus.user_id) == 0
    assert not part_of(service, path).exists()
    assert (await tus.head(path)).status_code == (await tus.delete(path)).status_code == 404
    image = await service.http.get(path.replace("/uploads/", "/images/"), headers=tus.headers)
    assert image.status_code == 404
    await eventually(lambda: told_of(service, path) == ["created", "deleted"])


async def test_an_upload_that_became_an_image_is_not_terminated(tus: Tus, eventually: Eventually) -> None:
    path = await tus.upload()
    await eventually(lambda: tus.is_now(path, "active"))
    answer = await tus.delete(path)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/image-state")
    assert await tus.is_now(path, "active")


async def test_a_protected_upload_is_not_terminated(service: Service, tus: Tus) -> None:
    path = await tus.begin(len(DISK))
    protect = {"protected": True}
    await service.http.patch(path.replace("/uploads/", "/images/"), headers=tus.headers, json=protect)
    assert (await tus.delete(path)).status_code == 409


async def test_an_upload_whose_staged_bytes_are_lost_is_ended_with_the_reason(
    service: Service, tus: Tus, eventually: Eventually
) -> None:
    path = await tus.begin(len(DISK))
    await tus.patch(path, 0, DISK[:HALF])
    os.truncate(part_of(service, path), HALF - 1)
    answer = await tus.patch(path, HALF, DISK[HALF:])
    assert (answer.status_code, answer.json()["type"]) == (410, "/problems/upload-gone")
    image = await tus.image(path)
    assert image["status"] == "rejected"
    assert "upload the file again" in image["reason"]
    assert service.used_bytes(tus.user_id) == 0
    await eventually(lambda: told_of(service, path) == ["created", "rejected"])


async def test_a_full_disk_is_a_507_and_the_upload_goes_on_later(tus: Tus, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = await tus.begin(len(DISK))
    await tus.patch(path, 0, DISK[:HALF])
    with monkeypatch.context() as patch:
        patch.setattr(folder_blobs, "_write", full)
        answer = await tus.patch(path, HALF, DISK[HALF:])
        assert (answer.status_code, answer.json()["type"]) == (507, "/problems/blob-store-full")
    assert await tus.offset(path) == HALF
    assert (await tus.patch(path, HALF, DISK[HALF:])).status_code == 204


async def test_a_last_byte_whose_commit_fails_is_sent_again(
    tus: Tus, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = UnitOfWork.commit

    async def fail_with_the_operation(unit: UnitOfWork) -> None:
        if any(getattr(row, "status", "") == "verifying" for row in unit.session.dirty):
            raise DatabaseUnavailable
        await commit(unit)

    path = await tus.begin(len(DISK))
    with monkeypatch.context() as patch:
        patch.setattr(UnitOfWork, "commit", fail_with_the_operation)
        assert (await tus.patch(path, 0, DISK)).status_code == 503
    assert (await tus.offset(path), (await tus.image(path))["status"]) == (0, "uploading")
    assert (await tus.patch(path, 0, DISK)).status_code == 204
    await eventually(lambda: tus.is_now(path, "active"))


@pytest.fixture
async def impatient(new_database_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    """A service whose uploads expire, and whose refusals are forgotten, while a test waits."""
    async with running(
        new_database_url, tmp_path, upload_expires_s=LEASE_S, sweep_every_s=0.1, rejected_days=1
    ) as service:
        yield service


async def test_an_expired_upload_is_swept_and_its_record_says_so(impatient: Service, eventually: Eventually) -> None:
    tus = Tus(impatient, await impatient.new_user())
    path = await tus.begin(len(DISK))
    await tus.patch(path, 0, DISK[:HALF])
    await eventually(lambda: tus.is_now(path, "rejected"))
    assert (await tus.head(path)).status_code == 410
    assert (await tus.patch(path, HALF, DISK[HALF:])).status_code == 410
    assert "not finished in time" in (await tus.image(path))["reason"]
    assert impatient.used_bytes(tus.user_id) == 0
    await eventually(lambda: not part_of(impatient, path).exists())
    await eventually(lambda: told_of(impatient, path) == ["created", "rejected"])


async def test_an_upload_stays_alive_as_long_as_bytes_arrive(impatient: Service, eventually: Eventually) -> None:
    tus = Tus(impatient, await impatient.new_user())
    path = await tus.begin(len(DISK))
    writing = tus.open(path, 0, upload_checksum=checksum("sha1", DISK))  # so that none counts before the last
    size = HALF
    writing.send(DISK[:size])
    until = asyncio.get_running_loop().time() + 2.5 * LEASE_S
    while asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.1)  # a slow client
        writing.send(DISK[size : size + 1])
        size += 1
    writing.send(DISK[size:], more=False)
    assert await writing.status() == 204
    await eventually(lambda: tus.is_now(path, "active"))


async def test_a_refusal_is_forgotten_after_some_days_unless_it_is_protected(
    impatient: Service, eventually: Eventually
) -> None:
    tus = Tus(impatient, await impatient.new_user())
    path, kept = await tus.begin(len(DISK)), await tus.begin(len(DISK))
    for each in (path, kept):
        await eventually(lambda each=each: tus.is_now(each, "rejected"))
    protect = {"protected": True}
    await impatient.http.patch(kept.replace("/uploads/", "/images/"), headers=tus.headers, json=protect)
    await impatient.change("UPDATE images SET updated_at = updated_at - interval '25 hours'")
    await eventually(lambda: told_of(impatient, path) == ["created", "rejected", "deleted"])
    assert (await tus.head(path)).status_code == 404
    assert await tus.is_now(kept, "rejected")


async def test_parallel_creations_never_exceed_the_quota(service: Service) -> None:
    tus = Tus(service, await service.new_user(image_bytes=7 * MIB))
    answers = await asyncio.gather(*(tus.create(MIB) for _ in range(50)))
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(201), statuses.count(409)) == (7, 43)
    assert service.used_bytes(tus.user_id) == 7 * MIB


async def test_a_disabled_user_begins_no_upload_and_what_was_begun_makes_no_image(
    service: Service, tus: Tus, eventually: Eventually
) -> None:
    path = await tus.begin(len(DISK))
    await service.bus.publish(user_event(tus.user_id, sequence=2, disabled=True))
    assert (await tus.create(len(DISK))).status_code == 403
    assert (await tus.patch(path, 0, DISK)).status_code == 204
    await eventually(lambda: tus.is_now(path, "rejected"))
    assert (await tus.image(path))["reason"] == "The account is disabled"
    assert service.used_bytes(tus.user_id) == 0
