"""The sweep: what a killed process or a lost connection left behind is given back and removed."""

from collections.abc import Awaitable, Callable, Iterable
from uuid import UUID

import structlog

from libs.common.uow import UnitOfWorkFactory
from services.images.ports import BlobStore
from services.images.repository import BlobRepository, ImageRepository, UploadRepository
from services.images.service.lifecycle import expire, forget

_BATCH = 1000
File = tuple[UUID, str]
"""An upload's id and the key under which its file lies."""

_log = structlog.get_logger()


class Sweeper:
    """Safe to run at any time on every replica.

    Files are listed before the tables are asked. An upload's row turns into a blob's row in one transaction, so that a
    listed file that neither table knows belongs to nobody, however fresh it is.
    """

    def __init__(self, uow: UnitOfWorkFactory, blobs: BlobStore, *, rejected_days: float = 7) -> None:
        self._uow = uow
        self._blobs = blobs
        self._rejected_days = rejected_days

    async def sweep(self) -> None:
        """End dead uploads and forget old refusals, then remove dead uploads' files and blobs without a record."""
        await self._end_dead_uploads()
        await self._forget_rejected_images()
        await self._remove(await self._blobs.staged(), self._orphans_among_staged)
        await self._remove(await self._blobs.published(), self._orphans_among_published)

    async def _end_dead_uploads(self) -> None:
        async with self._uow() as uow:
            dead = await UploadRepository(uow.session).dead()
        for upload_id in dead:
            if await expire(self._uow, upload_id):
                _log.warning("dead_upload_swept", upload_id=str(upload_id))

    async def _forget_rejected_images(self) -> None:
        async with self._uow() as uow:
            rejected = await ImageRepository(uow.session).rejected_before(self._rejected_days)
        for image_id in rejected:
            async with self._uow() as uow:
                image = await ImageRepository(uow.session).get(image_id, for_update=True)
                if image is None or image.protected:  # since it was listed
                    continue
                await forget(uow, image)
                await uow.commit()
            _log.info("rejected_image_forgotten", image_id=str(image_id))

    async def _remove(self, files: Iterable[File], orphans_among: Callable[[list[File]], Awaitable[list[str]]]) -> None:
        listed = list(files)
        for start in range(0, len(listed), _BATCH):
            for key in await orphans_among(listed[start : start + _BATCH]):
                await self._blobs.delete(key)
                _log.warning("orphan_file_swept", key=key)

    async def _orphans_among_staged(self, files: list[File]) -> list[str]:
        async with self._uow() as uow:
            alive = await UploadRepository(uow.session).known([upload_id for upload_id, _ in files])
        return [key for upload_id, key in files if upload_id not in alive]

    async def _orphans_among_published(self, files: list[File]) -> list[str]:
        async with self._uow() as uow:
            # In this order: an upload that ends in between is then found among the blobs.
            alive = await UploadRepository(uow.session).known([upload_id for upload_id, _ in files])
            blobs = BlobRepository(uow.session)
            known = await blobs.known_keys([key for _, key in files])
            if not known and not await blobs.any():
                # A database without a single blob beside a full folder is more likely the wrong database.
                _log.error("blobs_without_records_kept", files=len(files))
                return []
        return [key for upload_id, key in files if upload_id not in alive and key not in known]
