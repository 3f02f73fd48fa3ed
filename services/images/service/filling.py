"""How an operation fills an upload: space is reserved before bytes come, and durable bytes are noted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar
from uuid import UUID

import structlog

from libs.common import quotas
from libs.common.errors import QuotaExceeded, TelarError
from libs.common.operations import Json, Operation, enqueue
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.images.domain import Arrival, Status, human_size
from services.images.errors import FileTooLarge, StagedBytesLost, UploadExpired, UploadGone
from services.images.models import Image, Upload
from services.images.ports import BlobStore, Chunk, ResumableBlob
from services.images.repository import ImageRepository, UploadRepository
from services.images.service import lifecycle
from services.images.service.uploads import STEP_BYTES
from services.images.service.verification import RESOURCE

LEASE_S = 7 * 86_400.0
"""An operation ends its upload itself; this lease is for one that never comes to its end."""
NOTE_EVERY_BYTES = 16 << 20
_LOOK_EVERY_S = 5.0

T = TypeVar("T")

_log = structlog.get_logger()


class Books:
    """What is on record of an upload that an operation fills; each change is a transaction of its own."""

    def __init__(self, uow: UnitOfWorkFactory, upload: Upload, *, max_file_size: int) -> None:
        self.noted_bytes = upload.offset_bytes
        """How much of the file is staged durably."""
        self._uow = uow
        self._id = upload.id
        self._owner_id = upload.owner_id
        self._reserved_bytes = upload.reserved_bytes
        self._max_bytes = max_file_size
        self._look_at = 0.0

    async def reserve(self, size_bytes: int, *, in_steps: bool = False) -> None:
        """Have space for a file of that size, or for a step more if there is room. Raises FileTooLarge, QuotaExceeded.

        UploadExpired if the upload is gone.
        """
        if size_bytes > self._max_bytes:
            raise FileTooLarge(f"An image file may have at most {human_size(self._max_bytes)}")
        if size_bytes <= self._reserved_bytes:
            return
        if in_steps:
            with contextlib.suppress(QuotaExceeded):  # then what is needed at this moment has to do
                await self._grow(min(self._max_bytes, max(size_bytes, self._reserved_bytes + STEP_BYTES)))
                return
        await self._grow(size_bytes)

    async def note(self, size_bytes: int) -> None:
        """Record how much is staged durably; raises UploadExpired if the upload is gone, or somebody else fills it."""
        async with self._uow() as uow:
            advanced = await UploadRepository(uow.session).advance(
                self._id, from_bytes=self.noted_bytes, to_bytes=size_bytes, lease_s=LEASE_S
            )
            if not advanced:
                raise _lost()
            await uow.commit()
        self.noted_bytes = size_bytes

    async def look(self) -> None:
        """Raise UploadGone if the image was deleted meanwhile; asks only now and then, so call it as often as you like.

        The lease is renewed with it.
        """
        now = asyncio.get_running_loop().time()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        async with self._uow() as uow:
            if not await UploadRepository(uow.session).renew(self._id, LEASE_S):
                raise _gone()
            await uow.commit()

    async def _grow(self, size_bytes: int) -> None:
        more_bytes = size_bytes - self._reserved_bytes
        async with self._uow() as uow:
            if not await UploadRepository(uow.session).grow(self._id, more_bytes):
                raise _lost()
            await quotas.reserve(uow.session, self._owner_id, {"image_bytes": more_bytes})
            await uow.commit()
        self._reserved_bytes = size_bytes


class Filling:
    """Writes into a staged blob behind what is noted. Cancelled or failed, it notes what it has: the next goes on."""

    def __init__(self, books: Books, blob: ResumableBlob) -> None:
        self.size_bytes = books.noted_bytes
        self._books = books
        self._blob = blob

    async def write(self, piece: Chunk) -> None:
        """Append; raises FileTooLarge, QuotaExceeded, UploadExpired and what the store does."""
        size_bytes = self.size_bytes + len(piece)
        await self._books.reserve(size_bytes, in_steps=True)
        await unbroken(self._blob.write(piece))
        self.size_bytes = size_bytes
        if size_bytes - self._books.noted_bytes >= NOTE_EVERY_BYTES:
            await self.note()

    async def note(self) -> None:
        """Make durable and record what was written so far."""
        if self.size_bytes > self._books.noted_bytes:
            await unbroken(self._blob.sync())
            await unbroken(self._books.note(self.size_bytes))


async def books_of(uow: UnitOfWorkFactory, image_id: UUID, *, max_file_size: int) -> Books:
    """Open an upload's books; raises UploadGone if it was ended meanwhile, with its image."""
    async with uow() as unit:
        upload = await UploadRepository(unit.session).get(image_id)
    if upload is None:
        raise _gone()
    return Books(uow, upload, max_file_size=max_file_size)


async def enter(uow: UnitOfWorkFactory, image_id: UUID, status: Status, *, after: Status) -> None:
    """Move the image on, unless a step that is run again has done so before."""
    async with uow() as unit:
        await ImageRepository(unit.session).set_status(image_id, status, after=after)
        await unit.commit()


async def begin(
    uow: UnitOfWork, image: Image, arrival: Arrival, kind: str, *, reserved_bytes: int, given: Json
) -> Operation:
    """Record an image, its upload and the operation that will fill it; does not commit. Raises QuotaExceeded."""
    upload = Upload(
        id=image.id,
        owner_id=image.owner_id,
        kind=arrival.value,
        reserved_bytes=reserved_bytes,
        offset_bytes=0,
        lease_until=uow.clock.now(),
        created_at=uow.clock.now(),
    )
    await lifecycle.begin(uow, image, upload, lease_s=LEASE_S)
    return await enqueue(
        uow, kind=kind, resource_type=RESOURCE, resource_id=str(image.id), owner_id=image.owner_id, input=given
    )


@contextlib.asynccontextmanager
async def filling(books: Books, blobs: BlobStore, image_id: UUID, *, anew: bool = False) -> AsyncIterator[Filling]:
    """Go on filling a staged blob where its books end; at its beginning if `anew`, or if the store has lost it."""
    if anew and books.noted_bytes:
        await books.note(0)  # before the bytes go: the books never promise more than there is
    try:
        blob = await blobs.resume(image_id, books.noted_bytes)
    except StagedBytesLost as error:
        _log.warning("staged_file_lost", image_id=str(image_id), slug=error.slug)
        await books.note(0)
        blob = await blobs.resume(image_id, 0)
    target = Filling(books, blob)
    try:
        yield target
        await target.note()
    except BaseException:
        with contextlib.suppress(TelarError):  # the reason that is told is the one at hand
            await target.note()
        raise
    finally:
        await unbroken(blob.close())


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Wait for work to its end even if cancelled: what a thread works with must not be taken from under it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it as forgotten
        raise


def _gone() -> UploadGone:
    return UploadGone("The image was deleted meanwhile")


def _lost() -> UploadExpired:
    return UploadExpired("The upload was ended meanwhile, or another process goes on with it", retry_after_s=1)
