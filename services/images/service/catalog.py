"""The catalog: find, read, change and delete images."""

from collections.abc import Awaitable, Sequence
from typing import Any
from uuid import UUID

import structlog

from libs.common import quotas
from libs.common.auth import Principal
from libs.common.errors import TelarError
from libs.common.pagination import PageRequest
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.images.domain import Action, Status, require_deletable
from services.images.errors import BlobRotten
from services.images.events import ImageActivated, ImageDeactivated, ImageDeleted, ImageUpdated
from services.images.models import Image
from services.images.ports import BlobStore
from services.images.repository import BlobRepository, ImageFilter, ImageRepository, UploadRepository
from services.images.schemas import ImagePatch, Share, StatsOut, Totals
from services.images.service.records import changeable, readable, reader_of, tell, touch
from services.images.service.uses import require_unused

_COLUMNS = {"version": "os_version"}
"""Where a field of a change is kept under another name: a record's own `version` counts its changes."""

_log = structlog.get_logger()


class Catalog:
    """What can be done with images that are there. For who may not see one it raises ImageNotFound."""

    def __init__(self, uow: UnitOfWorkFactory, blobs: BlobStore) -> None:
        self._uow = uow
        self._blobs = blobs

    async def list(self, principal: Principal, wanted: ImageFilter, request: PageRequest) -> Sequence[Any]:
        """One page of what the caller may read, and one image more if there is a next page: rows like images."""
        async with self._uow() as uow:
            return await ImageRepository(uow.session).list(wanted, request, reader_id=reader_of(principal))

    async def get(self, principal: Principal, image_id: UUID) -> Image:
        async with self._uow() as uow:
            return await readable(uow, principal, image_id)

    async def patch(self, principal: Principal, image_id: UUID, change: ImagePatch, *, if_match: str | None) -> Image:
        async with self._uow() as uow:
            image = await changeable(uow, principal, image_id, Action.CHANGE, if_match=if_match)
            for name, value in change.model_dump(exclude_none=True, mode="json").items():
                setattr(image, _COLUMNS.get(name, name), value)
            touch(uow, image)
            tell(uow, ImageUpdated, image)
            await uow.commit()
        return image

    async def deactivate(self, principal: Principal, image_id: UUID) -> Image:
        """Keep the image from being downloaded; raises ImageState unless it is active."""
        async with self._uow() as uow:
            image = await changeable(uow, principal, image_id, Action.DEACTIVATE)
            image.status = Status.DEACTIVATED.value
            touch(uow, image)
            tell(uow, ImageDeactivated, image)
            await uow.commit()
        return image

    async def activate(self, principal: Principal, image_id: UUID) -> Image:
        """Let the image be downloaded again; raises ImageState unless it was deactivated, BlobRotten."""
        async with self._uow() as uow:
            image = await changeable(uow, principal, image_id, Action.ACTIVATE)
            await _require_sound(uow, image)
            image.status = Status.ACTIVE.value
            image.reason = None
            touch(uow, image)
            tell(uow, ImageActivated, image)
            await uow.commit()
        return image

    async def delete(self, principal: Principal, image_id: UUID, *, if_match: str | None) -> None:
        """Delete the image, with the last that shares it the file, or its upload; raises ImageProtected, ImageInUse."""
        async with self._uow() as uow:
            image = await changeable(uow, principal, image_id, Action.DELETE, if_match=if_match)
            require_deletable(Status(image.status), protected=image.protected)
            await require_unused(uow, principal, image_id)
            image.status = Status.DELETED.value
            touch(uow, image)
            ended = await UploadRepository(uow.session).end(image_id)
            held_bytes = image.size_bytes if ended is None else ended[1]
            usage = await quotas.release(uow.session, image.owner_id, {"image_bytes": held_bytes})
            await ImageRepository(uow.session).remove(image)
            unneeded_key = None
            if image.sha256 is not None:
                unneeded_key = await BlobRepository(uow.session).let_go(image.sha256)
            tell(uow, ImageDeleted, image, usage)
            await uow.commit()
        if ended is not None:
            await _or_leave_it(self._blobs.discard(image_id))
        if unneeded_key is not None:
            await _or_leave_it(self._blobs.delete(unneeded_key))

    async def stats(self, principal: Principal) -> StatsOut:
        async with self._uow() as uow:
            images = ImageRepository(uow.session)
            own = _sum(await images.totals(principal.user_id))
            everyone = _sum(await images.totals(None)) if principal.is_admin else None
        return StatsOut(**own.model_dump(), all=everyone)


async def _or_leave_it(removal: Awaitable[None]) -> None:
    """Remove a file that nobody refers to any more; if the store is away the sweep will find it."""
    try:
        await removal
    except TelarError as error:
        _log.warning("blob_left_to_the_sweep", slug=error.slug)


async def _require_sound(uow: UnitOfWork, image: Image) -> None:
    blob = None if image.sha256 is None else await BlobRepository(uow.session).get(image.sha256)
    if blob is None or blob.rotten_at is not None:
        raise BlobRotten("The image's file is damaged; upload the same file again, then activate the image")


def _sum(rows: Sequence[tuple[str, str, str, int, int, int]]) -> Totals:
    totals = Totals()
    for os_type, format_name, status, images, size_bytes, downloads in rows:
        for share in (
            totals,
            totals.by_os.setdefault(os_type, Share()),
            totals.by_format.setdefault(format_name, Share()),
            totals.by_status.setdefault(status, Share()),
        ):
            share.images += images
            share.bytes += int(size_bytes)
            share.downloads += int(downloads)
    return totals
