"""A resumable blob in S3: pieces under `staging/<upload>/<offset>`, because an object cannot be appended to."""

from collections.abc import AsyncGenerator, Iterator
from typing import NamedTuple
from uuid import UUID

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from services.images.adapters.s3_blobs.access import Range, read_ranges, s3_errors
from services.images.errors import BlobStoreUnavailable, StagedBytesLost, UploadBusy
from services.images.ports import Chunk

STAGING = "staging"
PIECE_BYTES = 16 << 20
"""The longest piece; what was written and is not yet a piece is in memory."""
_DIGITS = 16


class Piece(NamedTuple):
    """Bytes `start` to `end` (exclusive) of an upload, an object of their own."""

    key: str
    start: int
    end: int


def piece_key(upload_id: UUID, start: int) -> str:
    return f"{STAGING}/{upload_id}/{start:0{_DIGITS}}"


async def pieces(store: S3Store, upload_id: UUID, *, from_bytes: int = 0) -> list[Piece]:
    """An upload's pieces in order; only those that may reach over `from_bytes`, or lie beyond."""
    before = from_bytes - PIECE_BYTES - 1
    offset = piece_key(upload_id, before) if before >= 0 else None
    found = []
    with s3_errors():
        listed = await obstore.list(store, prefix=f"{STAGING}/{upload_id}", offset=offset).collect_async()
    for item in listed:
        name = item["path"].rpartition("/")[2]
        if len(name) == _DIGITS and name.isdecimal():
            found.append(Piece(item["path"], int(name), int(name) + item["size"]))
    return sorted(found, key=lambda piece: piece.start)


def chain(found: list[Piece], start: int, length: int) -> Iterator[Range]:
    """Where the upload's bytes `start` to `start + length` lie; raises StagedBytesLost if one of them is missing.

    A piece is found by where the one before it ends. What a writer left behind that was overtaken by another one
    begins where no piece of the chain does, or is dropped when the upload is resumed.
    """
    by_start = {piece.start: piece for piece in found}
    position, end = 0, start + length
    while position < end:
        piece = by_start.get(position)
        if piece is None or piece.end == piece.start:
            raise StagedBytesLost(f"Only {position} bytes of the upload are there")
        if piece.end > start:
            yield Range(piece.key, max(start, position) - position, min(end, piece.end) - position)
        position = piece.end


async def wind(store: S3Store, upload_id: UUID, offset_bytes: int) -> None:
    """Drop what lies beyond; raises StagedBytesLost unless the pieces before reach so far.

    A piece that reaches over the offset is replaced by its own beginning.
    """
    found = await pieces(store, upload_id, from_bytes=offset_bytes)
    beyond = [piece.key for piece in found if piece.start >= offset_bytes]
    if beyond:
        with s3_errors():
            await obstore.delete_async(store, beyond)
    if offset_bytes == 0 or any(piece.end == offset_bytes for piece in found):
        return
    for piece in found:
        if piece.start < offset_bytes < piece.end:
            with s3_errors():
                kept = await obstore.get_range_async(store, piece.key, start=0, end=offset_bytes - piece.start)
                await obstore.put_async(store, piece.key, kept)
            return
    there = max((piece.end for piece in found if piece.end <= offset_bytes), default=0)
    raise StagedBytesLost(f"Only {there} of {offset_bytes} bytes are there")


async def drop(store: S3Store, upload_id: UUID) -> None:
    """Remove every piece of an upload."""
    found = [piece.key for piece in await pieces(store, upload_id)]
    if found:
        with s3_errors():
            await obstore.delete_async(store, found)


class S3ResumableBlob:
    """Pieces that are put one after another.

    S3 knows no lock. Two writers of one upload find out when the second puts a piece where the first one has put his
    (`If-None-Match: *`): it raises UploadBusy, and resuming sets things right.
    """

    def __init__(self, store: S3Store, upload_id: UUID, offset_bytes: int) -> None:
        self._store = store
        self._upload_id = upload_id
        self._offset_bytes = offset_bytes
        self._buffer = bytearray()

    async def write(self, chunk: Chunk) -> None:
        rest = memoryview(chunk)
        while rest:
            taken = rest[: PIECE_BYTES - len(self._buffer)]
            self._buffer += taken
            rest = rest[len(taken) :]
            if len(self._buffer) == PIECE_BYTES:
                await self.sync()

    async def sync(self) -> None:
        if not self._buffer:
            return
        try:
            with s3_errors():
                key = piece_key(self._upload_id, self._offset_bytes)
                await obstore.put_async(self._store, key, self._buffer, mode="create", use_multipart=False)
        except BlobStoreUnavailable as error:
            if isinstance(error.__cause__, AlreadyExistsError):
                raise UploadBusy("Another connection is writing to this upload", retry_after_s=1) from error
            raise
        self._offset_bytes += len(self._buffer)
        self._buffer = bytearray()  # a new one: the old one's memory may still be the client's

    async def read(self, start: int, length: int) -> AsyncGenerator[bytes, None]:
        found = await pieces(self._store, self._upload_id)
        async for piece in read_ranges(self._store, list(chain(found, start, length))):
            yield piece

    async def close(self) -> None:
        self._buffer = bytearray()
