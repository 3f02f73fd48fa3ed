"""Uploads: reserve space, take the file in one pass, judge it, and make it an image, or leave nothing behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from uuid import UUID

import structlog

from libs.common import quotas
from libs.common.db import database_errors
from libs.common.errors import QuotaExceeded, TelarError
from libs.common.ids import uuid7
from libs.common.uow import UnitOfWorkFactory
from services.images.domain import Arrival, Format, Status, declared_format, human_size
from services.images.errors import FileTooLarge, UploadExpired
from services.images.models import Image, Upload
from services.images.ports import ArrivingFile, BlobStore, Inspector, StagedBlob
from services.images.repository import ImageRepository, UploadRepository
from services.images.service import lifecycle
from services.images.service.intake import Intake, Taken
from services.images.service.lifecycle import bookkeeping, give_back
from services.images.settings import ImagesSettings

FORM_ALLOWANCE_BYTES = 65_536
"""How much of a request's length may be the form around the file; what the file takes exactly is settled at its end."""
STEP_BYTES = 256 << 20
"""How much is reserved at a time for a file of unknown length."""

_log = structlog.get_logger()


class Uploads:
    """Takes uploads in. No transaction is open while a file streams; a row with a lease stands for it meanwhile."""

    def __init__(
        self,
        uow: UnitOfWorkFactory,
        blobs: BlobStore,
        inspector: Callable[[], Inspector],
        settings: ImagesSettings,
    ) -> None:
        self._uow = uow
        self._blobs = blobs
        self._inspector = inspector
        self._settings = settings

    async def upload(self, owner_id: str, file: ArrivingFile, *, declared_bytes: int | None) -> Image:
        """Take one file in and make it an active image of the owner.

        `declared_bytes` is the length of the whole request, if the client told. Raises FileTooLarge, QuotaExceeded,
        ImageRejected, DigestMismatch, Invalid (the description), UploadInterrupted; nothing is left over then.
        """
        limit = self._settings.max_file_size
        if declared_bytes is not None and declared_bytes > limit + FORM_ALLOWANCE_BYTES:
            raise self._too_large()
        upload_id = uuid7()
        reserved_bytes = max(0, (declared_bytes or 0) - FORM_ALLOWANCE_BYTES)
        await self._begin(upload_id, owner_id, reserved_bytes)
        staged: StagedBlob | None = None
        intake: Intake | None = None
        try:
            staged = await self._blobs.stage(upload_id)
            intake = Intake(self._inspector(), staged.write)
            async with self._kept_alive(upload_id):
                taken, declared = await self._take(upload_id, owner_id, file, intake, reserved_bytes)
                lifecycle.judge(taken, declared, file.description().sha256, self._settings)
                key = await staged.publish(taken.sha256)
                image, kept_key = await self._activate(upload_id, owner_id, file, declared, taken, key)
        except BaseException as error:
            await asyncio.shield(self._abandon(upload_id, staged, intake))
            if isinstance(error, TelarError):
                _log.info("upload_refused", upload_id=str(upload_id), owner_id=owner_id, slug=error.slug)
            raise
        if kept_key != key:  # the same file was there already
            await self._discard(staged)
        _log.info("image_activated", image_id=str(image.id), owner_id=owner_id, size_bytes=image.size_bytes)
        return image

    async def _take(
        self, upload_id: UUID, owner_id: str, file: ArrivingFile, intake: Intake, reserved_bytes: int
    ) -> tuple[Taken, Format]:
        size = 0
        declared: Format | None = None
        async with contextlib.aclosing(file.chunks()) as chunks:
            async for chunk in chunks:
                declared = declared or declared_format(file.filename)
                size += len(chunk)
                if size > self._settings.max_file_size:
                    raise self._too_large()
                if size > reserved_bytes + FORM_ALLOWANCE_BYTES:
                    reserved_bytes += await self._reserve_more(upload_id, owner_id, size - reserved_bytes)
                await intake.take(chunk)
        return await intake.finish(), declared or declared_format(file.filename)

    async def _begin(self, upload_id: UUID, owner_id: str, reserve_bytes: int) -> None:
        with bookkeeping():
            async with self._uow() as uow:
                await quotas.reserve(uow.session, owner_id, {"image_bytes": reserve_bytes})
                upload = Upload(
                    id=upload_id,
                    owner_id=owner_id,
                    kind=Arrival.MULTIPART.value,
                    reserved_bytes=reserve_bytes,
                    offset_bytes=0,
                    lease_until=uow.clock.now(),
                    created_at=uow.clock.now(),
                )
                await UploadRepository(uow.session).add(upload, lease_s=self._settings.upload_lease_s)
                await uow.commit()

    async def _reserve_more(self, upload_id: UUID, owner_id: str, needed_bytes: int) -> int:
        """Reserve a step ahead, or no more than what has come if the quota has no room for that."""
        try:
            return await self._reserve(upload_id, owner_id, max(STEP_BYTES, needed_bytes))
        except QuotaExceeded:
            return await self._reserve(upload_id, owner_id, needed_bytes)

    async def _reserve(self, upload_id: UUID, owner_id: str, more_bytes: int) -> int:
        with bookkeeping():
            async with self._uow() as uow:
                if not await UploadRepository(uow.session).grow(upload_id, more_bytes):
                    raise _expired()
                await quotas.reserve(uow.session, owner_id, {"image_bytes": more_bytes})
                await uow.commit()
        return more_bytes

    async def _activate(
        self, upload_id: UUID, owner_id: str, file: ArrivingFile, declared: Format, taken: Taken, key: str
    ) -> tuple[Image, str]:
        """Turn the upload into an image in one transaction; gives it and the key under which its file is kept."""
        provenance = {"kind": Arrival.MULTIPART.value, "filename": file.filename, "uploader_id": owner_id}
        async with self._uow() as uow:
            image = lifecycle.new_image(
                uow, upload_id, owner_id, file.description(), declared, status=Status.VERIFYING, provenance=provenance
            )
            kept_key = await lifecycle.activate(uow, image, taken, key)
            await uow.commit()
        return image, kept_key

    async def _abandon(self, upload_id: UUID, staged: StagedBlob | None, intake: Intake | None) -> None:
        """Give everything back, unless the image was made after all (a commit whose answer was lost)."""
        if intake is not None:
            await intake.abandon()
        try:
            with database_errors():
                made = not await give_back(self._uow, upload_id) and await self._is_made(upload_id)
            if staged is not None and not made:
                await self._discard(staged)
        except TelarError as error:  # the database is away: the sweep ends it when the lease has run out
            _log.warning("upload_left_to_the_sweep", upload_id=str(upload_id), slug=error.slug)
            if staged is not None:
                with contextlib.suppress(TelarError):
                    await staged.abandon()

    async def _is_made(self, upload_id: UUID) -> bool:
        async with self._uow() as uow:
            return await ImageRepository(uow.session).get(upload_id) is not None

    async def _discard(self, staged: StagedBlob) -> None:
        try:
            await staged.discard()
        except TelarError as error:
            _log.warning("blob_left_to_the_sweep", slug=error.slug)

    @contextlib.asynccontextmanager
    async def _kept_alive(self, upload_id: UUID) -> AsyncIterator[None]:
        """Renew the upload's lease in the background."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._settings.upload_lease_s / 3)
                with contextlib.suppress(TelarError), database_errors():  # tried again before the lease is over
                    async with self._uow() as uow:
                        await UploadRepository(uow.session).renew(upload_id, self._settings.upload_lease_s)
                        await uow.commit()

        with bookkeeping():
            task = asyncio.create_task(renew(), name=f"upload-{upload_id}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _too_large(self) -> FileTooLarge:
        return FileTooLarge(f"An image file may have at most {human_size(self._settings.max_file_size)}")


def _expired() -> UploadExpired:
    return UploadExpired("The service lost sight of the upload; upload the file again", retry_after_s=5)
