import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import UUID

import pytest

from libs.common.db import DatabaseUnavailable
from libs.common.ids import uuid7
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.images.adapters.folder_blobs import FolderBlobStore
from services.images.adapters.inspection import StreamInspector
from services.images.domain import Arrival
from services.images.errors import UploadExpired
from services.images.models import Upload
from services.images.repository import UploadRepository
from services.images.schemas import ImageDescription
from services.images.service import Sweeper, Uploads
from tests.contract.images.harness import Service, running
from tests.corpora.images import disks

Eventually = Callable[..., Awaitable[None]]
SHA256 = "cd" * 32


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(database_url, tmp_path_factory.mktemp("images"), sweep_every_s=3600) as service:
        yield service


@pytest.fixture
def blobs(service: Service) -> FolderBlobStore:
    return FolderBlobStore(service.settings.blob_folder)


@pytest.fixture
def sweeper(uow: UnitOfWorkFactory, blobs: FolderBlobStore) -> Sweeper:
    return Sweeper(uow, blobs)


async def begin(uow: UnitOfWorkFactory, owner: str, *, lease_s: float) -> UUID:
    upload_id = uuid7()
    async with uow() as unit:
        now = unit.clock.now()
        upload = Upload(
            id=upload_id,
            owner_id=owner,
            kind=Arrival.MULTIPART.value,
            reserved_bytes=0,
            offset_bytes=0,
            lease_until=now,
            created_at=now,
        )
        await UploadRepository(unit.session).add(upload, lease_s=lease_s)
        await unit.commit()
    return upload_id


async def test_a_file_of_a_live_upload_is_left_alone_and_that_of_a_dead_one_is_not(
    service: Service, uow: UnitOfWorkFactory, blobs: FolderBlobStore, sweeper: Sweeper
) -> None:
    owner = await service.new_user()
    await service.image(owner)
    files = set(service.files())
    for publish in (False, True):
        for lease_s, stays in ((60, True), (-1, False)):
            staged = await blobs.stage(await begin(uow, owner, lease_s=lease_s))
            await staged.write(b"x" * 1000)
            if publish:
                await staged.publish(SHA256)
            await sweeper.sweep()
            assert (len(service.files()) == len(files) + 1) is stays
            await staged.discard()
    assert set(service.files()) == files


async def test_a_file_that_no_upload_ever_made_is_left_alone(service: Service, sweeper: Sweeper) -> None:
    await service.image(await service.new_user())
    strange = service.settings.blob_folder / "blobs" / "lost+found" / "notes.txt"
    strange.parent.mkdir()
    strange.write_text("mine")
    await sweeper.sweep()
    assert strange.exists()
    strange.unlink()


async def test_a_blob_whose_removal_was_lost_is_removed(
    service: Service, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await service.new_user()
    await service.image(owner)
    files = len(service.files())
    image = await service.image(owner, disks.raw_disk(), filename="a.img")

    async def killed(*_: object) -> None:
        """The process ended between the commit and the removal."""

    with monkeypatch.context() as patch:
        patch.setattr(FolderBlobStore, "delete", killed)
        url = f"/api/v1/images/{image['id']}"
        assert (await service.http.delete(url, headers=service.as_user(owner))).status_code == 204
    assert len(service.files()) == files + 1
    await sweeper.sweep()
    assert len(service.files()) == files


async def test_a_database_that_knows_no_blob_at_all_removes_none(
    service: Service, uow: UnitOfWorkFactory, tmp_path: Path
) -> None:
    other = FolderBlobStore(tmp_path)
    await other.prepare()
    staged = await other.stage(uuid7())
    await staged.write(b"x" * 1000)
    key = await staged.publish(SHA256)
    await service.change("DELETE FROM images")
    await service.change("DELETE FROM blobs")
    await Sweeper(uow, other).sweep()
    assert (tmp_path / key).exists()


class Endless:
    """A file that goes on until it is cancelled."""

    filename = "a.img"

    async def chunks(self) -> AsyncGenerator[bytearray, None]:
        while True:
            yield bytearray(1 << 20)
            await asyncio.sleep(0)

    def description(self) -> ImageDescription:
        return ImageDescription(name="n", os_type="o")


async def test_a_cancelled_upload_leaves_nothing(
    service: Service, uow: UnitOfWorkFactory, blobs: FolderBlobStore, eventually: Eventually
) -> None:
    owner = await service.new_user()
    files = len(service.files())
    uploads = Uploads(uow, blobs, StreamInspector, service.settings)
    task = asyncio.create_task(uploads.upload(owner, Endless(), declared_bytes=None))
    await eventually(lambda: service.used_bytes(owner) > 0 and len(service.files()) == files + 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert service.rows("SELECT count(*) FROM uploads WHERE owner_id = %s", owner) == [(0,)]
    assert service.used_bytes(owner) == 0
    assert len(service.files()) == files


async def test_an_upload_whose_lease_was_lost_makes_no_image(
    service: Service, uow: UnitOfWorkFactory, blobs: FolderBlobStore
) -> None:
    class Forgotten(Endless):
        async def chunks(self) -> AsyncGenerator[bytearray, None]:
            yield bytearray(1 << 20)
            await service.change("DELETE FROM uploads")

    owner, files = await service.new_user(), len(service.files())
    uploads = Uploads(uow, blobs, StreamInspector, service.settings)
    with pytest.raises(UploadExpired):
        await uploads.upload(owner, Forgotten(), declared_bytes=None)
    assert service.rows("SELECT count(*) FROM images WHERE owner_id = %s", owner) == [(0,)]
    assert len(service.files()) == files


async def test_an_image_whose_commit_was_answered_too_late_is_kept(
    service: Service, uow: UnitOfWorkFactory, blobs: FolderBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = UnitOfWork.commit
    commits = 0

    async def answer_lost(unit: UnitOfWork) -> None:
        nonlocal commits
        await commit(unit)
        commits += 1
        if commits == 2:  # the first one reserved, this one made the image
            raise DatabaseUnavailable

    class Short(Endless):
        async def chunks(self) -> AsyncGenerator[bytearray, None]:
            yield bytearray(disks.mbr_disk())

    owner, files = await service.new_user(), len(service.files())
    uploads = Uploads(uow, blobs, StreamInspector, service.settings)
    with monkeypatch.context() as patch:
        patch.setattr(UnitOfWork, "commit", answer_lost)
        with pytest.raises(DatabaseUnavailable):
            await uploads.upload(owner, Short(), declared_bytes=disks.MIB)
    assert service.rows("SELECT count(*) FROM images WHERE owner_id = %s", owner) == [(1,)]
    assert service.used_bytes(owner) == disks.MIB
    assert len(service.files()) == files + 1
