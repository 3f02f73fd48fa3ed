"""Integrity: stored files are read again now and then; a rotten one takes its images out of service and says so."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import select

from libs.common.auth import Principal
from libs.common.errors import TelarError
from libs.common.operations import Operation, State, enqueue, operations_table
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.images.domain import Action, Status, human_size
from services.images.errors import BlobRotten, BlobStoreUnavailable, ImageNotFound
from services.images.events import ImageDeactivated
from services.images.models import Blob, Image
from services.images.ports import BlobReader, BlobStore
from services.images.repository import BlobRepository, ImageRepository
from services.images.service.records import changeable, tell, touch
from services.images.service.verification import RESOURCE
from services.images.settings import ImagesSettings

REHASH = "image.rehash"
"""The kind of the operation that checks one image's file at once."""
_OPENING_S = 2.0
"""So long a check that is broken off waits for a file that it was about to open."""
Progress = Callable[[float], Awaitable[None]]

_log = structlog.get_logger()


class IntegrityMetrics:
    """What the checks found, and how much they read."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.blobs = Counter(
            "telar_images_blobs_checked", "Stored files read again, by what was found", ("outcome",), registry=registry
        )
        self.bytes = Counter("telar_images_blob_bytes_checked", "Bytes of stored files read again", registry=registry)


class Integrity:
    """Checks stored files against the digests that they had when they came in."""

    def __init__(
        self, uow: UnitOfWorkFactory, blobs: BlobStore, metrics: IntegrityMetrics, settings: ImagesSettings
    ) -> None:
        self._uow = uow
        self._blobs = blobs
        self._metrics = metrics
        self._settings = settings

    async def begin(self, principal: Principal, image_id: UUID) -> Operation:
        """Have one image's file checked now, once for whoever asks again meanwhile.

        Raises ImageNotFound, ImageState if it has no file.
        """
        async with self._uow() as uow:
            await changeable(uow, principal, image_id, Action.VERIFY)
            begun = await _begun(uow, principal, image_id)
            if begun is not None:
                return begun
            operation = await enqueue(
                uow,
                kind=REHASH,
                resource_type=RESOURCE,
                resource_id=str(image_id),
                owner_id=principal.user_id,
                input={},
            )
            await uow.commit()
        return operation

    async def check_image(self, image_id: UUID, progress: Progress) -> None:
        """Read an image's file; raises BlobRotten, ImageNotFound, BlobStoreUnavailable."""
        async with self._uow() as uow:
            image = await ImageRepository(uow.session).get(image_id)
            blob = None
            if image is not None and image.sha256 is not None:
                blob = await BlobRepository(uow.session).get(image.sha256)
        if blob is None:
            raise ImageNotFound
        damage = await self._check(blob, progress)
        if damage is not None:
            raise BlobRotten(damage)

    async def check_due(self) -> None:
        """Read every file that was not verified for long, the longest first; what was read is not read again.

        A file that cannot be read now is left for the next time; the run ends if the whole store does not answer.
        """
        done: tuple[datetime, str] | None = None
        while True:
            async with self._uow() as uow:
                before = uow.clock.now() - timedelta(days=self._settings.rehash_after_days)
                blob = await BlobRepository(uow.session).longest_unverified(done, before=before)
            if blob is None:
                return
            done = (blob.verified_at, blob.sha256)
            try:
                await self._check(blob, _untold)
            except TelarError as error:
                _log.warning("blob_not_checked", sha256=blob.sha256, error=error.slug, detail=error.detail)
                if not await self._store_answers():
                    return

    async def _check(self, blob: Blob, progress: Progress) -> str | None:
        """Read a file and record what was found; gives what is wrong with it, in words for its owners."""
        try:
            damage = await self._damage(blob, progress)
        except BlobStoreUnavailable:
            self._metrics.blobs.labels("unreadable").inc()
            raise
        self._metrics.blobs.labels("intact" if damage is None else "rotten").inc()
        if damage is not None:
            await self._condemn(blob, damage)
            return damage
        async with self._uow() as uow:
            await BlobRepository(uow.session).note_verified(blob.sha256, key=blob.key, now=uow.clock.now())
            await uow.commit()
        return None

    async def _damage(self, blob: Blob, progress: Progress) -> str | None:
        try:
            async with self._opened(blob.key) as reader:
                return await self._compared(blob, reader, progress)
        except ImageNotFound:
            await self._require_files()
            return "The stored file is gone"

    async def _compared(self, blob: Blob, reader: BlobReader, progress: Progress) -> str | None:
        if reader.size_bytes != blob.size_bytes:
            found, recorded = human_size(reader.size_bytes), human_size(blob.size_bytes)
            return f"The stored file is damaged: it has {found} instead of {recorded}"
        digest, pace, read_bytes = hashlib.sha256(), _Pace(self._settings.rehash_bytes_per_s), 0
        async with contextlib.aclosing(reader.read(0, blob.size_bytes)) as pieces:
            async for piece in pieces:
                await asyncio.to_thread(digest.update, piece)
                read_bytes += len(piece)
                self._metrics.bytes.inc(len(piece))
                await progress(read_bytes / blob.size_bytes)
                await pace.keep(len(piece))
        if digest.hexdigest() == blob.sha256:
            return None
        return "The stored file is damaged: it no longer has the SHA-256 digest that it had when it was verified"

    @contextlib.asynccontextmanager
    async def _opened(self, key: str) -> AsyncIterator[BlobReader]:
        """Open a file and close it again, even if the check is broken off, once or twice, while a thread opens it."""
        opening = asyncio.ensure_future(self._blobs.open(key))
        try:
            yield await asyncio.shield(opening)
        finally:
            await asyncio.shield(asyncio.ensure_future(_closed(opening)))

    async def _require_files(self) -> None:
        """Raise BlobStoreUnavailable for a store that is away or empty, as one is that is not mounted."""
        if not await self._store_answers() or not any(True for _ in await self._blobs.published()):
            raise BlobStoreUnavailable("Not a single image file is there; look whether the store is mounted")

    async def _store_answers(self) -> bool:
        try:
            await self._blobs.check()
        except (OSError, TelarError):
            return False
        return True

    async def _condemn(self, blob: Blob, damage: str) -> None:
        """Note that a file is rotten and deactivate its active images, all at once.

        Images are locked before their blob, as everywhere. One that came to share it in between is in the next try.
        """
        while True:
            async with self._uow() as uow:
                images, blobs = ImageRepository(uow.session), BlobRepository(uow.session)
                sharing = await images.lock_sharing(blob.sha256)
                rotten = await blobs.get(blob.sha256, for_update=True)
                if rotten is None or rotten.key != blob.key or rotten.rotten_at is not None:
                    return  # another file took its place, or it is known
                if await images.count_sharing(blob.sha256) != len(sharing):
                    continue
                now = rotten.rotten_at = uow.clock.now()
                reason = f"{damage} (found on {now:%Y-%m-%d}); upload the same file again, then activate the image"
                active = [image for image in sharing if image.status == Status.ACTIVE]
                for image in active:
                    image.status = Status.DEACTIVATED.value
                    image.reason = reason
                    touch(uow, image)
                    tell(uow, ImageDeactivated, image)
                await uow.commit()
            _tell_operators(blob, damage, active)
            return


async def _begun(uow: UnitOfWork, principal: Principal, image_id: UUID) -> Operation | None:
    known = operations_table.c
    query = select(operations_table).where(
        known.resource_type == RESOURCE,
        known.resource_id == str(image_id),
        known.kind == REHASH,
        known.owner_id == principal.user_id,
        known.state.in_((State.PENDING, State.RUNNING)),
        ~known.cancel_requested,
    )
    row = (await (await uow.session.connection()).execute(query)).mappings().first()
    return None if row is None else Operation.from_row(row)


async def _closed(opening: asyncio.Future[BlobReader]) -> None:
    await asyncio.wait({opening}, timeout=_OPENING_S)
    if not opening.done():
        opening.cancel()
    elif opening.exception() is None:
        await opening.result().close()


class _Pace:
    """Holds a reader back to so many bytes per second; time that was not used is lost."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    async def keep(self, read_bytes: int) -> None:
        """Wait until so many bytes more may have been read."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + read_bytes / self._bytes_per_s
        await asyncio.sleep(self._free_at - now)


async def _untold(_fraction: float) -> None:
    """Nobody waits for a scheduled check."""


def _tell_operators(blob: Blob, damage: str, deactivated: list[Image]) -> None:
    image_ids = [str(image.id) for image in deactivated]
    _log.error("blob_rotten", sha256=blob.sha256, key=blob.key, damage=damage, deactivated=image_ids)
