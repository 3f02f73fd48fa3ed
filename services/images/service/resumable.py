"""Resumable uploads: begin one, look how far it is, append to it, end it; its file is verified once it is whole."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog

from libs.common.auth import Principal
from libs.common.db import database_errors
from libs.common.errors import FieldError, Invalid, TelarError
from libs.common.ids import uuid7
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.images.domain import MIN_FILE_BYTES, SHOWN_TO_OTHERS, Arrival, Format, Status, human_size, next_status
from services.images.errors import (
    FileTooLarge,
    OffsetMismatch,
    PartTooLong,
    StagedBytesLost,
    UploadGone,
    UploadInterrupted,
    UploadNotFound,
    UploadTakenOver,
)
from services.images.models import Image, Upload
from services.images.ports import BlobStore
from services.images.repository import ImageRepository, UploadRepository
from services.images.schemas import ImageDescription
from services.images.service import lifecycle
from services.images.service.appending import Appending, Part, Turn, Turns, append
from services.images.service.lifecycle import bookkeeping
from services.images.service.records import may_change
from services.images.settings import ImagesSettings

_LOOK_EVERY_S = 1.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NewUpload:
    """What is known of a file before its first byte; `metadata_header` is told again as the client sent it."""

    length_bytes: int
    filename: str
    format: Format
    said: ImageDescription
    metadata_header: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an upload is; it has no `expires_at` once its file is whole.

    `operation_id` is that of the verification, told by the request that brought the last byte.
    """

    upload_id: UUID
    offset_bytes: int
    length_bytes: int
    metadata_header: str = ""
    expires_at: datetime | None = None
    operation_id: str | None = None


class ResumableUploads:
    """What can be done with a resumable upload. For who may not change it every call raises UploadNotFound."""

    def __init__(self, uow: UnitOfWorkFactory, blobs: BlobStore, settings: ImagesSettings) -> None:
        self._uow = uow
        self._blobs = blobs
        self._settings = settings
        self._turns = Turns()

    @property
    def max_size_bytes(self) -> int:
        return self._settings.max_file_size

    async def create(self, principal: Principal, new: NewUpload, first: Part | None = None) -> Progress:
        """Reserve the file's whole length and record a queued image; takes the first bytes if they came along.

        Raises FileTooLarge, Invalid (too short), QuotaExceeded, and what `append` does; nothing is left over then.
        """
        self._require_size(new.length_bytes)
        upload_id = uuid7()
        # With bytes it is they that change something: refused, they leave the request's Idempotency-Key free.
        with bookkeeping() if first is not None else contextlib.nullcontext():
            async with self._uow() as uow:
                image, upload = _records(uow, upload_id, principal.user_id, new)
                await lifecycle.begin(uow, image, upload, lease_s=self._settings.upload_expires_s)
                await uow.commit()
        _log.info("upload_begun", upload_id=str(upload_id), owner_id=principal.user_id, length_bytes=new.length_bytes)
        if first is not None:
            try:
                return await self.append(principal, upload_id, first)
            except UploadInterrupted:  # what arrived counts; the answer says how much, should it still be heard
                pass
            except TelarError:
                with bookkeeping():
                    await self.terminate(principal, upload_id)
                raise
        return await self.progress(principal, upload_id)

    async def progress(self, principal: Principal, upload_id: UUID) -> Progress:
        """How far the upload is, also after it became an image; raises UploadGone if it never will."""
        async with self._uow() as uow:
            # In this order: whoever ends an upload says so on its image in the same transaction.
            upload = await UploadRepository(uow.session).get(upload_id)
            image = await ImageRepository(uow.session).get(upload_id)
        return _progress(principal, image, upload)

    async def append(self, principal: Principal, upload_id: UUID, part: Part) -> Progress:
        """Take the bytes of one request; another request of this process that writes to the upload ends for it.

        Raises OffsetMismatch, PartTooLong, ChecksumMismatch, UploadBusy (another process writes), UploadTakenOver,
        UploadInterrupted (what arrived counts), UploadGone, BlobStoreFull.
        """
        now = await self.progress(principal, upload_id)
        _require_fit(now, part)
        if now.offset_bytes == now.length_bytes:
            return await _require_nothing_more(now, part)
        try:
            async with contextlib.aclosing(part.chunks), self._turns.take(upload_id) as turn:
                return await self._append(principal, upload_id, part, turn)
        except UploadTakenOver:
            await self.progress(principal, upload_id)  # raises if it is not a writer, but the upload's end that came
            raise

    async def terminate(self, principal: Principal, upload_id: UUID) -> None:
        """End the upload and delete its record; raises ImageState if it has become an image, ImageProtected."""
        async with self._uow() as uow:
            image = await ImageRepository(uow.session).get(upload_id, for_update=True)
            await lifecycle.forget(uow, _require_own(principal, image))
            await uow.commit()
        self._turns.stop(upload_id)
        try:
            await self._blobs.discard(upload_id)
        except TelarError as error:
            _log.warning("staged_file_left_to_the_sweep", upload_id=str(upload_id), slug=error.slug)
        _log.info("upload_terminated", upload_id=str(upload_id))

    async def _append(self, principal: Principal, upload_id: UUID, part: Part, turn: Turn) -> Progress:
        turn.check()
        upload = await self._claim(principal, upload_id, part)
        try:
            blob = await self._blobs.resume(upload_id, upload.offset_bytes)
        except StagedBytesLost as error:
            await self._give_up(upload_id)
            raise UploadGone(_LOST) from error
        appending = Appending(self._uow, blob, upload, part.checksum, lease_s=self._settings.upload_expires_s)
        async with self._kept_alive(turn, upload):
            offset_bytes, operation_id = await append(appending, part, turn)
        if operation_id is None:
            return await self.progress(principal, upload_id)
        _log.info("upload_whole", upload_id=str(upload_id), operation_id=operation_id)
        length_bytes = upload.length_bytes or 0
        return Progress(upload_id, offset_bytes, length_bytes, upload.metadata_header, operation_id=operation_id)

    async def _claim(self, principal: Principal, upload_id: UUID, part: Part) -> Upload:
        """Become the upload's writer: from here on nobody else's bytes count, in whatever process they arrive.

        Until the other one has noticed and lets go of the file, the store says UploadBusy (if it knows locks).
        """
        with bookkeeping():
            async with self._uow() as uow:
                image = await ImageRepository(uow.session).get(upload_id, for_update=True)
                upload = await UploadRepository(uow.session).get(upload_id, for_update=True)
                _require_fit(_progress(principal, image, upload), part)
                if image is None or upload is None or upload.offset_bytes == upload.length_bytes:
                    raise UploadGone("The file became whole meanwhile; there is nothing to send any more")
                upload.writer += 1
                if image.status == Status.QUEUED:
                    image.status = next_status(Status.QUEUED, Status.UPLOADING).value
                    image.updated_at = uow.clock.now()
                await uow.commit()
        return upload

    @contextlib.asynccontextmanager
    async def _kept_alive(self, turn: Turn, upload: Upload) -> AsyncIterator[None]:
        """Renew the lease in the background, and end the turn when there is nothing to renew.

        So another process can claim the upload: a half-open connection locks nobody out there either.
        """
        lease_s = self._settings.upload_expires_s

        async def renew() -> None:
            is_ours = True
            while is_ours:
                await asyncio.sleep(min(_LOOK_EVERY_S, lease_s / 3))
                with contextlib.suppress(TelarError), database_errors():  # tried again the next time
                    async with self._uow() as uow:
                        is_ours = await UploadRepository(uow.session).renew(upload.id, lease_s, writer=upload.writer)
                        await uow.commit()
            turn.stop()

        with bookkeeping():
            task = asyncio.create_task(renew(), name=f"upload-{upload.id}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _give_up(self, upload_id: UUID) -> None:
        with bookkeeping():
            async with self._uow() as uow:
                await lifecycle.reject(uow, upload_id, _LOST)
                await uow.commit()
        _log.error("staged_bytes_lost", upload_id=str(upload_id))

    def _require_size(self, length_bytes: int) -> None:
        if length_bytes > self.max_size_bytes:
            largest = f"{human_size(self.max_size_bytes)} ({self.max_size_bytes} bytes)"
            raise FileTooLarge(f"An image file may have at most {largest}")
        if length_bytes < MIN_FILE_BYTES:
            reason = f"No disk image is smaller than {MIN_FILE_BYTES} bytes"
            raise Invalid(reason, errors=[FieldError("/header/upload-length", reason)])


_LOST = "A part of what was uploaded was lost on the server; upload the file again"


def _records(uow: UnitOfWork, upload_id: UUID, owner_id: str, new: NewUpload) -> tuple[Image, Upload]:
    provenance = {"kind": Arrival.TUS.value, "filename": new.filename, "uploader_id": owner_id}
    image = lifecycle.new_image(
        uow,
        upload_id,
        owner_id,
        new.said,
        new.format,
        status=Status.QUEUED,
        size_bytes=new.length_bytes,
        provenance=provenance,
    )
    upload = Upload(
        id=upload_id,
        owner_id=owner_id,
        kind=Arrival.TUS.value,
        reserved_bytes=new.length_bytes,
        length_bytes=new.length_bytes,
        offset_bytes=0,
        expected_sha256=new.said.sha256,
        metadata_header=new.metadata_header,
        lease_until=image.created_at,
        created_at=image.created_at,
    )
    return image, upload


def _require_own(principal: Principal, image: Image | None) -> Image:
    if image is None or image.provenance.get("kind") != Arrival.TUS or not may_change(principal, image):
        raise UploadNotFound
    return image


def _progress(principal: Principal, image: Image | None, upload: Upload | None) -> Progress:
    image = _require_own(principal, image)
    if upload is not None:
        length_bytes = upload.length_bytes or 0
        expires_at = upload.lease_until if upload.offset_bytes < length_bytes else None
        return Progress(upload.id, upload.offset_bytes, length_bytes, upload.metadata_header, expires_at)
    if image.status in SHOWN_TO_OTHERS:
        return Progress(image.id, image.size_bytes, image.size_bytes)
    raise UploadGone(image.reason or "The upload was not finished in time; begin a new one")


def _require_fit(now: Progress, part: Part) -> None:
    if part.offset_bytes != now.offset_bytes:
        raise OffsetMismatch(now.offset_bytes)
    if part.length_bytes is not None and part.offset_bytes + part.length_bytes > now.length_bytes:
        raise PartTooLong(f"Only {now.length_bytes - now.offset_bytes} of {now.length_bytes} bytes are missing")


async def _require_nothing_more(now: Progress, part: Part) -> Progress:
    """Whoever sends nothing to a whole file learns that it is whole."""
    async with contextlib.aclosing(part.chunks) as chunks:
        async for _ in chunks:
            raise PartTooLong(f"The upload is whole: it has all of its {now.length_bytes} bytes")
    return now
