"""From a reservation to an active image, or to a rejected one: the transactions that every way in shares."""

import contextlib
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from libs.common import quotas
from libs.common.uow import UnitOfWork, UnitOfWorkFactory, before_commit
from services.images.domain import (
    SHOWN_TO_OTHERS,
    Arrival,
    Format,
    Observation,
    Status,
    next_status,
    require_deletable,
    require_safe,
)
from services.images.errors import DigestMismatch, ImageNotFound, ImageState, UploadExpired
from services.images.events import ImageActivated, ImageCreated, ImageDeleted, ImageEvent, ImageRejected, UsageChanged
from services.images.models import Image, Upload
from services.images.repository import BlobRepository, ImageRepository, UploadRepository
from services.images.schemas import ImageDescription
from services.images.service.intake import Taken
from services.images.service.records import payload
from services.images.settings import ImagesSettings


@contextlib.contextmanager
def bookkeeping() -> Iterator[None]:
    """Commit without marking the request's Idempotency-Key: a reservation or lease is not the effect it asked for."""
    reset = before_commit.set(None)
    try:
        yield
    finally:
        before_commit.reset(reset)


def new_image(
    uow: UnitOfWork,
    image_id: UUID,
    owner_id: str,
    said: ImageDescription,
    declared: Format,
    *,
    status: Status,
    size_bytes: int = 0,
    provenance: dict[str, Any],
    derived_from: UUID | None = None,
) -> Image:
    """A record in that status, of which the database does not know yet."""
    now = uow.clock.now()
    return Image(
        id=image_id,
        owner_id=owner_id,
        name=said.name,
        os_type=said.os_type,
        os_version=said.version,
        architecture=said.architecture,
        description=said.description,
        format=declared.value,
        status=status.value,
        visibility=said.visibility.value,
        tags=said.tags,
        min_disk_gib=said.min_disk_gib,
        min_memory_mib=said.min_memory_mib,
        size_bytes=size_bytes,
        virtual_size_bytes=0,
        derived_from=derived_from,
        provenance=provenance if said.sha256 is None else {**provenance, "expected_sha256": said.sha256},
        downloads=0,
        created_at=now,
        updated_at=now,
    )


async def begin(uow: UnitOfWork, image: Image, upload: Upload, *, lease_s: float) -> None:
    """Reserve what the upload says, record the image as queued and tell of it; does not commit.

    For every way in but the multipart one, whose image is recorded when it is there. Raises QuotaExceeded.
    """
    usage = await quotas.reserve(uow.session, image.owner_id, {"image_bytes": upload.reserved_bytes})
    ImageRepository(uow.session).add(image)
    await UploadRepository(uow.session).add(upload, lease_s=lease_s)
    _tell(uow, ImageCreated, image, usage)


def judge(taken: Taken, declared: Format, expected_sha256: str | None, settings: ImagesSettings) -> None:
    """Raise ImageRejected, QuotaExceeded or DigestMismatch unless the file may become an image."""
    require_safe(declared, taken.seen, max_virtual_size_bytes=settings.max_virtual_size_bytes)
    if expected_sha256 is not None and expected_sha256 != taken.sha256:
        raise DigestMismatch(f"The file that arrived has the SHA-256 digest {taken.sha256}; upload it again")


async def activate(uow: UnitOfWork, image: Image, taken: Taken, key: str) -> str:
    """End the upload and make its image active, recorded before or not; does not commit.

    Gives the key under which the file is kept: another one than `key` if the same file was there already. Raises
    UploadExpired if the upload was given up meanwhile.
    """
    ended = await UploadRepository(uow.session).end(image.id)
    if ended is None:
        raise UploadExpired("The service lost sight of the upload; upload the file again", retry_after_s=5)
    size_bytes = taken.seen.size_bytes
    usage = await quotas.reserve(uow.session, image.owner_id, {"image_bytes": size_bytes - ended[1]})
    now = uow.clock.now()
    kept_key = await BlobRepository(uow.session).refer(taken.sha256, key=key, size_bytes=size_bytes, now=now)
    image.status = Status.ACTIVE.value
    image.size_bytes = size_bytes
    image.virtual_size_bytes = taken.seen.virtual_size_bytes
    image.sha256, image.sha512 = taken.sha256, taken.sha512
    image.provenance = {
        **image.provenance,
        "inspection": inspection_report(taken.seen),
        "inspected_at": now.isoformat(),
    }
    image.updated_at = now
    ImageRepository(uow.session).add(image)
    _tell(uow, ImageActivated, image, usage)
    return kept_key


async def reject(uow: UnitOfWork, image_id: UUID, reason: str) -> bool:
    """End the upload, give its reservation back and say on the image's record why; does not commit.

    False if there is no such image any more, or it is past that.
    """
    image = await ImageRepository(uow.session).get(image_id, for_update=True)
    ended = await UploadRepository(uow.session).end(image_id)
    usage = None
    if ended is not None:
        usage = await quotas.release(uow.session, ended[0], {"image_bytes": ended[1]})
    if image is None or Status(image.status) in (Status.ACTIVE, Status.DEACTIVATED, Status.REJECTED):
        return False
    image.status = next_status(Status(image.status), Status.REJECTED).value
    image.reason = reason
    image.size_bytes = 0
    image.version += 1
    image.updated_at = uow.clock.now()
    _tell(uow, ImageRejected, image, usage)
    return True


async def forget(uow: UnitOfWork, image: Image) -> None:
    """Delete the record of an image that never became active and end its upload, if it has one left; does not commit.

    The staged file is the caller's to discard. Raises ImageProtected, or ImageState if it is not such an image.
    """
    if image.status in SHOWN_TO_OTHERS:
        raise ImageState(f"The upload has become an image; delete the image {image.id} if you do not want it")
    require_deletable(Status(image.status), protected=image.protected)
    ended = await UploadRepository(uow.session).end(image.id)
    held_bytes = 0 if ended is None else ended[1]
    usage = await quotas.release(uow.session, image.owner_id, {"image_bytes": held_bytes})
    image.status = Status.DELETED.value
    image.version += 1
    image.updated_at = uow.clock.now()
    _tell(uow, ImageDeleted, image, usage)
    await ImageRepository(uow.session).remove(image)


async def withdraw(uow: UnitOfWork, image: Image) -> str | None:
    """Delete an active image's record; gives the key of the file that nobody needs any more. Does not commit."""
    image.status = next_status(Status(image.status), Status.DELETED).value
    image.version += 1
    image.updated_at = uow.clock.now()
    usage = await quotas.release(uow.session, image.owner_id, {"image_bytes": image.size_bytes})
    _tell(uow, ImageDeleted, image, usage)
    await ImageRepository(uow.session).remove(image)
    return None if image.sha256 is None else await BlobRepository(uow.session).let_go(image.sha256)


async def give_back(uow_factory: UnitOfWorkFactory, upload_id: UUID, *, if_dead: bool = False) -> bool:
    """Forget a multipart upload and release what it had reserved; False if it was no longer there (or is alive)."""
    with bookkeeping():
        async with uow_factory() as uow:
            ended = await UploadRepository(uow.session).end(upload_id, if_dead=if_dead)
            if ended is None:
                return False
            owner_id, reserved_bytes = ended
            usage = await quotas.release(uow.session, owner_id, {"image_bytes": reserved_bytes})
            if reserved_bytes:  # another image's event may have told of them
                uow.add_event(UsageChanged(usage=usage), subject=owner_id, owner=owner_id, sequence=usage.sequence)
            await uow.commit()
    return True


async def expire(uow_factory: UnitOfWorkFactory, upload_id: UUID) -> bool:
    """End an upload whose lease has run out, its image's record with it; False if it is alive or gone."""
    with bookkeeping():
        async with uow_factory() as uow:
            # The image's row first, as everybody locks the two: a deletion might wait for this, and this for it.
            await ImageRepository(uow.session).get(upload_id, for_update=True)
            upload = await UploadRepository(uow.session).dead_one(upload_id)
            if upload is None:
                return False
            if upload.kind != Arrival.MULTIPART:
                await reject(uow, upload_id, "The upload was not finished in time")
                await uow.commit()
                return True
    return await give_back(uow_factory, upload_id, if_dead=True)


def inspection_report(seen: Observation) -> dict[str, Any]:
    """What the provenance tells of the look that was taken at a file."""
    return {
        "formats": sorted(seen.formats),
        "size_bytes": seen.size_bytes,
        "virtual_size_bytes": seen.virtual_size_bytes,
    }


async def require_image(uow: UnitOfWork, image_id: UUID) -> Image:
    """Lock an image's record; raises ImageNotFound."""
    image = await ImageRepository(uow.session).get(image_id, for_update=True)
    if image is None:
        raise ImageNotFound
    return image


def _tell(uow: UnitOfWork, event: type[ImageEvent], image: Image, usage: quotas.Usage | None) -> None:
    uow.add_event(payload(event, image, usage), subject=str(image.id), owner=image.owner_id, sequence=image.version)
