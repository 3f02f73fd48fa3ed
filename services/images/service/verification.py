"""Verification of a file that is staged: one pass for both digests and the inspection, then the image is active."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import structlog

from libs.common.errors import TelarError
from libs.common.uow import UnitOfWorkFactory
from services.images.domain import Format, Observation, Status
from services.images.errors import ImageNotFound
from services.images.ports import BlobStore, Inspector
from services.images.repository import ImageRepository, UploadRepository
from services.images.service import lifecycle
from services.images.service.intake import Intake, Taken
from services.images.settings import ImagesSettings

RESOURCE = "image"
VERIFY = "image.verify"
"""The kind of the operation that verifies an upload whose file is whole."""
Progress = Callable[[float], Awaitable[None]]

_log = structlog.get_logger()


class Verification:
    """The end of every way in that survives a restart; both parts may be repeated."""

    def __init__(
        self, uow: UnitOfWorkFactory, blobs: BlobStore, inspector: Callable[[], Inspector], settings: ImagesSettings
    ) -> None:
        self._uow = uow
        self._blobs = blobs
        self._inspector = inspector
        self._settings = settings

    async def verify(self, image_id: UUID, progress: Progress) -> dict[str, Any]:
        """Read the staged file and judge it; gives what `activate` needs, as JSON.

        Raises ImageRejected, QuotaExceeded, DigestMismatch; ImageNotFound if the upload was ended meanwhile.
        """
        async with self._uow() as uow:
            image = await ImageRepository(uow.session).get(image_id)
            upload = await UploadRepository(uow.session).get(image_id)
        if image is None or upload is None:
            raise ImageNotFound
        intake = Intake(self._inspector())
        staged = await self._blobs.resume(image_id, upload.offset_bytes)
        try:
            read_bytes = 0
            async with contextlib.aclosing(staged.read(0, upload.offset_bytes)) as pieces:
                async for piece in pieces:
                    await intake.take(piece)
                    read_bytes += len(piece)
                    await progress(read_bytes / upload.offset_bytes)
            taken = await intake.finish()
        finally:
            await intake.abandon()
            await staged.close()
        lifecycle.judge(taken, Format(image.format), upload.expected_sha256, self._settings)
        return _to_json(taken)

    async def discard(self, image_id: UUID) -> None:
        """Remove what is staged of an image that will never be one, now rather than with the next sweep."""
        try:
            await self._blobs.discard(image_id)
        except TelarError as error:
            _log.warning("staged_file_left_to_the_sweep", image_id=str(image_id), slug=error.slug)

    async def activate(self, image_id: UUID, verified: dict[str, Any]) -> None:
        """Publish the file and make the image active."""
        taken = _from_json(verified)
        async with self._uow() as uow:
            if await UploadRepository(uow.session).get(image_id) is None:
                image = await ImageRepository(uow.session).get(image_id)
                if image is not None and image.sha256 == taken.sha256:  # repeated after a crash
                    return
                raise ImageNotFound
        key = await self._blobs.publish(image_id, taken.sha256, size_bytes=taken.seen.size_bytes)
        async with self._uow() as uow:
            image = await lifecycle.require_image(uow, image_id)
            image.version += 1
            kept_key = await lifecycle.activate(uow, image, taken, key)
            await uow.commit()
        if kept_key != key:  # the same file was there already
            await self._blobs.delete(key)
        _log.info("image_activated", image_id=str(image_id), size_bytes=taken.seen.size_bytes)

    async def withdraw(self, image_id: UUID) -> None:
        """Take back an activation whose operation was cancelled at its very end: the image is gone as if deleted."""
        async with self._uow() as uow:
            image = await ImageRepository(uow.session).get(image_id, for_update=True)
            if image is None or image.status != Status.ACTIVE:
                return
            unneeded_key = await lifecycle.withdraw(uow, image)
            await uow.commit()
        if unneeded_key is not None:
            with contextlib.suppress(TelarError):  # nobody refers to it any more: the sweep finds it
                await self._blobs.delete(unneeded_key)
        _log.info("image_withdrawn", image_id=str(image_id))


def _to_json(taken: Taken) -> dict[str, Any]:
    seen = taken.seen
    return {
        "sha256": taken.sha256,
        "sha512": taken.sha512,
        "size_bytes": seen.size_bytes,
        "formats": sorted(seen.formats),
        "virtual_size_bytes": seen.virtual_size_bytes,
    }


def _from_json(document: dict[str, Any]) -> Taken:
    seen = Observation(document["size_bytes"], frozenset(document["formats"]), document["virtual_size_bytes"])
    return Taken(document["sha256"], document["sha512"], seen)
