"""Appends the bytes of one request to a resumable upload, and sees to it that only one request at a time does."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from uuid import UUID

import structlog

from libs.common import operations
from libs.common.errors import TelarError
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.images.domain import Status, next_status
from services.images.errors import (
    ChecksumMismatch,
    PartTooLong,
    UploadInterrupted,
    UploadTakenOver,
)
from services.images.models import Image, Upload
from services.images.ports import Chunk, ResumableBlob
from services.images.repository import ImageRepository, UploadRepository
from services.images.service.lifecycle import bookkeeping
from services.images.service.verification import RESOURCE, VERIFY

COUNT_EVERY_BYTES = 4 << 20
"""How much may be staged before it is made durable and counted.

A kill may cost a client 16 MiB that it sends again: the rest of them is for what is on its way, in our buffers and the
kernel's (docs/adr/0007-tus.md).
"""
_VERIFYING_LEASE_S = 30 * 86_400.0
"""Once the file is whole its operation ends the upload; this lease is only for one that never would."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the bytes of one request must hash to; `algorithm` is a name of hashlib's."""

    algorithm: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes that one request brings: from which offset on, how many if that is known, and what they hash to.

    `chunks` raises UploadInterrupted, after it gave what had arrived, if the client went away.
    """

    offset_bytes: int
    length_bytes: int | None
    checksum: Checksum | None
    chunks: AsyncGenerator[bytearray, None]


class Turn:
    """One request's right to write to an upload, until a newer request of the same process takes it."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._is_over = False
        self._waiting: asyncio.Timeout | None = None

    def stop(self) -> None:
        """Let the request end; it is broken off only where it waits for its client, never while it stores."""
        if not self._is_over and self._waiting is not None:
            self._waiting.reschedule(0)
        self._is_over = True

    def check(self) -> None:
        """Raise UploadTakenOver if it is somebody else's turn."""
        if self._is_over:
            raise _taken_over()

    async def next_of(self, chunks: AsyncGenerator[bytearray, None]) -> bytearray | None:
        """Wait for the next chunk, None after the last; raises UploadTakenOver."""
        self.check()
        try:
            async with asyncio.timeout(None) as self._waiting:
                return await anext(chunks, None)
        except TimeoutError:
            self.check()
            raise
        finally:
            self._waiting = None


class Turns:
    """Who writes to which upload in this process; between processes see `ResumableUploads`."""

    def __init__(self) -> None:
        self._turns: dict[UUID, Turn] = {}

    @contextlib.asynccontextmanager
    async def take(self, upload_id: UUID) -> AsyncIterator[Turn]:
        """Stop the request that writes to the upload and wait for its end: a half-open connection locks nobody out."""
        turn, older = Turn(), self._turns.get(upload_id)
        self._turns[upload_id] = turn
        try:
            if older is not None:
                older.stop()
                await older.ended.wait()
            yield turn
        finally:
            turn.ended.set()
            if self._turns.get(upload_id) is turn:
                del self._turns[upload_id]

    def stop(self, upload_id: UUID) -> None:
        """Let whoever writes to the upload end."""
        turn = self._turns.get(upload_id)
        if turn is not None:
            turn.stop()


class Appending:
    """Stores one part: a chunk in the background while the next one arrives, so that two are in memory.

    Nothing that is under way in a thread or in the database is ever broken off: whoever is cancelled here calls
    `close`, which waits for it.
    """

    def __init__(
        self, uow: UnitOfWorkFactory, blob: ResumableBlob, upload: Upload, checksum: Checksum | None, *, lease_s: float
    ) -> None:
        self._uow = uow
        self._blob = blob
        self._id = upload.id
        self._writer = upload.writer
        self._length_bytes = upload.length_bytes or 0
        self._counted_bytes = self._staged_bytes = self._taken_bytes = upload.offset_bytes
        self._checksum = checksum
        self._hash = None if checksum is None else hashlib.new(checksum.algorithm, usedforsecurity=False)
        self._lease_s = lease_s
        self._at_work: asyncio.Task[str | None] | None = None
        self._is_open = True

    async def take(self, chunk: Chunk) -> None:
        """Start to store a chunk, once the one before is stored. Raises PartTooLong and what the store does."""
        self._taken_bytes += len(chunk)
        if self._taken_bytes > self._length_bytes:
            raise PartTooLong(f"The upload has {self._length_bytes} bytes; what came beyond them was not taken")
        await self._settle()
        self._at_work = asyncio.create_task(self._store(chunk))

    async def finish(self) -> tuple[int, str | None]:
        """Count what was stored: the new offset and, if the file is whole now, the operation that verifies it.

        Raises ChecksumMismatch; nothing of the part counts then.
        """
        await self._settle()
        self._at_work = asyncio.create_task(self._end())
        operation_id = await self._settle()
        return self._counted_bytes, operation_id

    async def close(self) -> None:
        """Wait for what is under way and let go of the file; what was not counted is dropped by whoever resumes."""
        at_work, self._at_work = self._at_work, None
        if at_work is not None:
            await asyncio.wait([at_work])
            if not at_work.cancelled() and at_work.exception() is not None:
                _log.warning(
                    "upload_part_not_stored", upload_id=str(self._id), error=type(at_work.exception()).__name__
                )
        await self._let_go()

    async def _settle(self) -> str | None:
        if self._at_work is None:
            return None
        outcome = await asyncio.shield(self._at_work)
        self._at_work = None
        return outcome

    async def _store(self, chunk: Chunk) -> None:
        if self._hash is None:
            await self._blob.write(chunk)
        else:
            await asyncio.gather(self._blob.write(chunk), asyncio.to_thread(self._hash.update, chunk))
        self._staged_bytes += len(chunk)
        uncounted_bytes = self._staged_bytes - self._counted_bytes
        if self._checksum is None and uncounted_bytes >= COUNT_EVERY_BYTES and self._staged_bytes < self._length_bytes:
            await self._count()

    async def _count(self) -> None:
        await self._blob.sync()
        with bookkeeping():
            async with self._uow() as uow:
                await self._advance(UploadRepository(uow.session), self._lease_s)
                await uow.commit()
        self._counted_bytes = self._staged_bytes

    async def _end(self) -> str | None:
        if self._checksum is not None and self._hash is not None and self._hash.digest() != self._checksum.digest:
            raise ChecksumMismatch("None of the request's bytes was kept; send them again from the same offset")
        if self._staged_bytes == self._counted_bytes:
            return None
        is_whole = self._staged_bytes == self._length_bytes
        operation_id = None
        await self._blob.sync()
        async with self._uow() as uow:
            image = await ImageRepository(uow.session).get(self._id, for_update=True)
            if image is None:
                raise _taken_over()
            await self._advance(UploadRepository(uow.session), _VERIFYING_LEASE_S if is_whole else self._lease_s)
            if is_whole:
                operation_id = await _enqueue_verification(uow, image)
                await self._let_go()  # now, so that the verification does not find the file locked
            await uow.commit()
        self._counted_bytes = self._staged_bytes
        return operation_id

    async def _advance(self, uploads: UploadRepository, lease_s: float) -> None:
        counted, staged = self._counted_bytes, self._staged_bytes
        advanced = await uploads.advance(
            self._id, from_bytes=counted, to_bytes=staged, lease_s=lease_s, writer=self._writer
        )
        if not advanced:
            raise _taken_over()

    async def _let_go(self) -> None:
        if self._is_open:
            self._is_open = False
            await self._blob.close()


async def append(appending: Appending, part: Part, turn: Turn) -> tuple[int, str | None]:
    """Store a part to its end; what arrived counts even if the client goes away, unless it must match a checksum.

    Gives what `Appending.finish` does. Raises UploadInterrupted, UploadTakenOver, PartTooLong, ChecksumMismatch.
    """
    try:
        try:
            while (chunk := await turn.next_of(part.chunks)) is not None:
                await appending.take(chunk)
        except (UploadInterrupted, asyncio.CancelledError):
            if part.checksum is None:
                await asyncio.shield(_keep_what_arrived(appending))
            raise
        return await appending.finish()
    finally:
        await asyncio.shield(appending.close())


async def _keep_what_arrived(appending: Appending) -> None:
    try:
        await appending.finish()
    except TelarError as error:  # the interruption is what is told
        _log.warning("upload_part_not_counted", slug=error.slug)


async def _enqueue_verification(uow: UnitOfWork, image: Image) -> str:
    """Let the file be verified now that it is whole; gives the operation's id."""
    image.status = next_status(Status(image.status), Status.VERIFYING).value
    image.updated_at = uow.clock.now()
    operation = await operations.enqueue(
        uow, kind=VERIFY, resource_type=RESOURCE, resource_id=str(image.id), owner_id=image.owner_id, input={}
    )
    return operation.id


def _taken_over() -> UploadTakenOver:
    return UploadTakenOver("A newer request writes to this upload; ask for its Upload-Offset")
