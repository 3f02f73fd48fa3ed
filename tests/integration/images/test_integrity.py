"""Stored files that rot or go away, found by the scheduled check or by an operation."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from libs.common.uow import UnitOfWorkFactory
from services.images.adapters.folder_blobs import FolderBlobReader, FolderBlobStore
from services.images.errors import BlobStoreUnavailable
from services.images.repository import ImageRepository
from services.images.service import Integrity, IntegrityMetrics, Sweeper
from tests.contract.images.harness import Service, running
from tests.contract.images.rotting import due, file_of, flip, shown
from tests.corpora.images import disks

Eventually = Callable[..., Awaitable[None]]
MIB = 1 << 20


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(database_url, tmp_path_factory.mktemp("images"), rehash_every_s=3600) as service:
        yield service


@pytest.fixture
def metrics() -> IntegrityMetrics:
    return IntegrityMetrics(CollectorRegistry())


@pytest.fixture
def integrity(service: Service, uow: UnitOfWorkFactory, metrics: IntegrityMetrics) -> Integrity:
    return Integrity(uow, FolderBlobStore(service.settings.blob_folder), metrics, service.settings)


@pytest.fixture
async def owner(service: Service) -> AsyncIterator[str]:
    """Each test has the whole service to itself; a sound file of somebody else's is there."""
    owner = await service.new_user()
    await service.image(owner, disks.qcow2(virtual_size=999 * MIB), name="bystander")
    yield owner
    await service.change("DELETE FROM images")
    await service.change("DELETE FROM blobs")
    for path in service.files():
        path.unlink()


def checked(metrics: IntegrityMetrics, outcome: str) -> float:
    count: float = metrics.blobs.labels(outcome)._value.get()
    return count


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "no longer has the SHA-256 digest"),
        (Path.unlink, "is gone"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "instead of"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "instead of"),
    ],
    ids=["a flipped bit", "gone", "cut off", "longer"],
)
async def test_a_rotten_file_takes_its_active_images_out_of_service_and_says_so(
    service: Service,
    integrity: Integrity,
    metrics: IntegrityMetrics,
    owner: str,
    eventually: Eventually,
    harm: Callable[[Path], Any],
    said: str,
) -> None:
    content, friend = disks.raw_disk(2 * MIB), await service.new_user()
    images = [await service.image(user, content, filename="a.img") for user in (owner, friend, owner)]
    url = f"/api/v1/images/{images[2]['id']}"
    await service.http.post(f"{url}/deactivate", headers=service.as_user(owner))
    digest = hashlib.sha256(content).hexdigest()
    harm(file_of(service, digest))
    await due(service, digest)
    await integrity.check_due()
    ((rotten,),) = service.rows("SELECT rotten_at IS NOT NULL FROM blobs WHERE sha256 = %s", digest)
    assert rotten
    for image, user in zip(images[:2], (owner, friend), strict=True):
        now = await shown(service, user, image)
        assert (now["status"], now["etag"]) == ("deactivated", '"2"')
        assert said in now["reason"]
        assert "upload the same file again, then activate the image" in now["reason"]
        assert now["updated_at"] > image["updated_at"]
    before = await shown(service, owner, images[2])
    assert (before["reason"], before["etag"]) == (None, '"2"')

    def told() -> dict[str, tuple[int, str | None]]:
        return {
            event.subject: (event.sequence, event.data["reason"])
            for event in service.heard
            if event.type == "images.image.deactivated.v1"
        }

    await eventually(lambda: {image["id"] for image in images} <= set(told()))
    assert told()[images[0]["id"]] == (2, (await shown(service, owner, images[0]))["reason"])
    assert told()[images[2]["id"]] == (2, None)
    assert (checked(metrics, "rotten"), checked(metrics, "intact")) == (1, 0)
    await integrity.check_due()
    assert checked(metrics, "rotten") == 1, "what is known to be rotten is not read again"


async def test_an_image_of_a_rotten_file_is_activated_only_after_the_file_was_uploaded_again(
    service: Service, integrity: Integrity, owner: str
) -> None:
    content = disks.raw_disk(MIB)
    image = await service.image(owner, content, filename="a.img")
    digest = hashlib.sha256(content).hexdigest()
    old_path = file_of(service, digest)
    flip(old_path)
    await due(service, digest)
    await integrity.check_due()
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(owner)
    refused = await service.http.post(f"{url}/activate", headers=headers)
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/blob-rotten")
    assert "upload the same file again" in refused.json()["detail"]
    again = await service.image(owner, content, filename="a.img")
    assert file_of(service, digest) != old_path
    assert (await shown(service, owner, image))["status"] == "deactivated", "its owner decides when it comes back"
    active = await service.http.post(f"{url}/activate", headers=headers)
    assert (active.status_code, active.json()["status"], active.json()["reason"]) == (200, "active", None)
    for one in (image, again):
        downloaded = await service.http.get(f"/api/v1/images/{one['id']}/download", headers=headers)
        assert hashlib.sha256(downloaded.content).hexdigest() == digest
    ((rotten_at, references),) = service.rows("SELECT rotten_at, reference_count FROM blobs WHERE sha256 = %s", digest)
    assert (rotten_at, references) == (None, 2)


async def test_the_rotten_file_is_swept_away_once_a_sound_one_has_taken_its_place(
    service: Service, integrity: Integrity, uow: UnitOfWorkFactory, owner: str
) -> None:
    content = disks.raw_disk(MIB)
    digest = hashlib.sha256(content).hexdigest()
    await service.image(owner, content, filename="a.img")
    rotten = file_of(service, digest)
    flip(rotten)
    await due(service, digest)
    await integrity.check_due()
    sweeper = Sweeper(uow, FolderBlobStore(service.settings.blob_folder), rejected_days=1)
    await sweeper.sweep()
    assert rotten.exists(), "an operator may still want to look at it"
    await service.image(owner, content, filename="a.img")
    await sweeper.sweep()
    assert not rotten.exists()
    assert file_of(service, digest).read_bytes() == content


async def test_a_sound_file_is_noted_as_verified_and_not_read_again(
    service: Service, integrity: Integrity, metrics: IntegrityMetrics, owner: str
) -> None:
    content = disks.raw_disk(3 * MIB)
    image = await service.image(owner, content, filename="a.img")
    digest = hashlib.sha256(content).hexdigest()
    await due(service, digest)
    await integrity.check_due()
    ((is_fresh,),) = service.rows(
        "SELECT verified_at > now() - interval '1 minute' FROM blobs WHERE sha256 = %s", digest
    )
    assert is_fresh
    assert (await shown(service, owner, image))["etag"] == '"1"'
    assert metrics.bytes._value.get() == len(content)
    await integrity.check_due()
    assert checked(metrics, "intact") == 1


async def test_a_check_that_was_broken_off_goes_on_with_the_next_file(
    service: Service, integrity: Integrity, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for number in range(3):
        content = disks.raw_disk(MIB) + bytes([number]) * 512
        await service.image(owner, content, filename="a.img")
        digests.append(hashlib.sha256(content).hexdigest())
    await due(service, *digests)
    opened: list[str] = []
    held = asyncio.Event()
    open_blob = FolderBlobStore.open

    async def hold_the_second(store: FolderBlobStore, key: str) -> FolderBlobReader:
        opened.append(key)
        if len(opened) == 2:
            held.set()
            await asyncio.Event().wait()
        return await open_blob(store, key)

    monkeypatch.setattr(FolderBlobStore, "open", hold_the_second)
    broken_off = asyncio.create_task(integrity.check_due())
    await asyncio.wait_for(held.wait(), 10)
    broken_off.cancel()
    await asyncio.gather(broken_off, return_exceptions=True)
    await integrity.check_due()
    keys = [file_of(service, digest).relative_to(service.settings.blob_folder).as_posix() for digest in digests]
    assert opened == [keys[0], keys[1], keys[1], keys[2]]


async def test_a_store_that_fails_for_a_moment_is_no_rot_and_keeps_no_other_file_waiting(
    service: Service, integrity: Integrity, metrics: IntegrityMetrics, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests, images = [], []
    for number in range(2):
        content = disks.raw_disk(MIB) + bytes([number]) * 512
        images.append(await service.image(owner, content, filename="a.img"))
        digests.append(hashlib.sha256(content).hexdigest())
    await due(service, *digests)
    first = file_of(service, digests[0]).name
    open_blob = FolderBlobStore.open

    async def fail_for_the_first(store: FolderBlobStore, key: str) -> FolderBlobReader:
        if key.endswith(first):
            raise BlobStoreUnavailable("The disk for images does not answer")
        return await open_blob(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(FolderBlobStore, "open", fail_for_the_first)
        await integrity.check_due()
    assert (checked(metrics, "unreadable"), checked(metrics, "intact"), checked(metrics, "rotten")) == (1, 1, 0)
    assert [(await shown(service, owner, image))["status"] for image in images] == ["active", "active"]
    await integrity.check_due()
    assert checked(metrics, "intact") == 2


@pytest.mark.parametrize("is_mounted", [True, False], ids=["an empty store", "no store"])
async def test_a_store_that_is_not_mounted_condemns_nothing(
    service: Service, uow: UnitOfWorkFactory, metrics: IntegrityMetrics, owner: str, tmp_path: Path, is_mounted: bool
) -> None:
    content = disks.raw_disk(MIB)
    image = await service.image(owner, content, filename="a.img")
    await due(service, hashlib.sha256(content).hexdigest())
    other = FolderBlobStore(tmp_path / "elsewhere")
    if is_mounted:
        await other.prepare()
    await Integrity(uow, other, metrics, service.settings).check_due()
    assert checked(metrics, "rotten") == 0
    assert (await shown(service, owner, image))["status"] == "active"


async def test_files_are_read_no_faster_than_allowed(
    service: Service, uow: UnitOfWorkFactory, metrics: IntegrityMetrics, owner: str
) -> None:
    content = disks.raw_disk(4 * MIB)
    await service.image(owner, content, filename="a.img")
    await due(service, hashlib.sha256(content).hexdigest())
    slow = service.settings.model_copy(update={"rehash_bytes_per_s": 8 * MIB})
    started = time.monotonic()
    await Integrity(uow, FolderBlobStore(service.settings.blob_folder), metrics, slow).check_due()
    assert time.monotonic() - started >= 0.5
    assert checked(metrics, "intact") == 1


async def test_an_image_that_comes_to_share_the_file_meanwhile_is_deactivated_too(
    service: Service, integrity: Integrity, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = disks.raw_disk(MIB)
    first = await service.image(owner, content, filename="a.img")
    digest = hashlib.sha256(content).hexdigest()
    flip(file_of(service, digest))
    await due(service, digest)
    late: list[dict[str, Any]] = []
    lock_sharing = ImageRepository.lock_sharing

    async def somebody_is_faster(repository: ImageRepository, sha256: str) -> Any:
        locked = await lock_sharing(repository, sha256)
        if not late:
            late.append(await service.image(owner, content, filename="a.img"))
        return locked

    monkeypatch.setattr(ImageRepository, "lock_sharing", somebody_is_faster)
    await integrity.check_due()
    assert [(await shown(service, owner, image))["status"] for image in (first, *late)] == ["deactivated"] * 2


async def test_the_service_checks_by_itself(new_database_url: str, tmp_path: Path, eventually: Eventually) -> None:
    async with running(new_database_url, tmp_path, rehash_every_s=0.2, rehash_after_days=0) as service:
        owner = await service.new_user()
        await service.image(owner)
        content = disks.raw_disk(MIB)
        image = await service.image(owner, content, filename="a.img")
        flip(file_of(service, hashlib.sha256(content).hexdigest()))

        async def is_out_of_service() -> bool:
            return bool((await shown(service, owner, image))["status"] == "deactivated")

        await eventually(is_out_of_service)
        measured = (await service.http.get("/metrics")).text
        assert 'telar_images_blobs_checked_total{outcome="rotten"} 1.0' in measured
        assert "telar_images_blob_bytes_checked_total" in measured
