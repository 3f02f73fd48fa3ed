"""Blobs in a folder that all replicas share: `staging/<upload>.part`, then `blobs/<ab>/<sha256>.<upload>`."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from libs.common.errors import TelarError
from services.images.adapters.disk import blob_errors, disk_errors, move, publish_file, resume_file, sync_folder
from services.images.adapters.links import NginxLinks
from services.images.adapters.work_folders import linked, moved
from services.images.errors import BlobStoreUnavailable, StagedBytesLost
from services.images.ports import Chunk

_READ_BYTES = 1 << 20
_WRITE_BACK_BYTES = 32 << 20
_STAGING = "staging"
_BLOBS = "blobs"


class FolderBlobStore:
    """A folder on one file system, so that a rename is atomic; what may wait for the disk runs in a thread."""

    def __init__(self, root: Path, *, links: NginxLinks | None = None) -> None:
        self._root = root
        self._links = links

    async def prepare(self) -> None:
        """Make the folder, and fail now rather than at the first upload if it cannot be written."""
        await asyncio.to_thread(self._prepare)

    async def check(self) -> None:
        """Raise OSError unless the folder is there and can be written."""

        def probe() -> None:
            if not os.access(self._root / _STAGING, os.W_OK | os.X_OK):
                raise PermissionError(f"{self._root / _STAGING} cannot be written")

        await asyncio.to_thread(probe)

    async def stage(self, upload_id: UUID) -> "FolderStagedBlob":
        path = self._part(upload_id)
        with disk_errors():
            file = await asyncio.to_thread(path.open, "xb", buffering=0)
        return FolderStagedBlob(self._root, upload_id, path, file)

    async def resume(self, upload_id: UUID, offset_bytes: int) -> "FolderResumableBlob":
        with disk_errors():
            return FolderResumableBlob(await asyncio.to_thread(resume_file, self._part(upload_id), offset_bytes))

    async def publish(self, upload_id: UUID, sha256: str, *, size_bytes: int) -> str:
        key = _key(sha256, upload_id)
        with disk_errors():
            await asyncio.to_thread(publish_file, self._part(upload_id), self._root / key, size_bytes)
        return key

    async def discard(self, upload_id: UUID) -> None:
        with disk_errors():
            await asyncio.to_thread(self._part(upload_id).unlink, missing_ok=True)

    async def open(self, key: str) -> "FolderBlobReader":
        with blob_errors():
            return FolderBlobReader(await asyncio.to_thread(self._path(key).open, "rb", buffering=0))

    async def delete(self, key: str) -> None:
        with disk_errors():
            await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    async def link(self, key: str, *, filename: str, expires_s: int) -> str | None:
        if self._links is None:
            return None
        return self._links.sign(key, filename=filename, expires_at=int(time.time()) + expires_s)

    async def lend(self, key: str, target: Path) -> bool:
        with blob_errors():
            return await asyncio.to_thread(linked, self._path(key), target)

    async def adopt(self, upload_id: UUID, path: Path) -> bool:
        with disk_errors():
            is_moved = await asyncio.to_thread(moved, path, self._part(upload_id))
            if is_moved:
                await asyncio.to_thread(sync_folder, self._root / _STAGING)
        return is_moved

    async def staged(self) -> Iterable[tuple[UUID, str]]:
        return await asyncio.to_thread(self._list, f"{_STAGING}/*.part", lambda path: path.stem)

    async def published(self) -> Iterable[tuple[UUID, str]]:
        return await asyncio.to_thread(self._list, f"{_BLOBS}/*/*", lambda path: path.suffix[1:])

    def _prepare(self) -> None:
        for folder in (_STAGING, _BLOBS):
            (self._root / folder).mkdir(parents=True, exist_ok=True, mode=0o750)

    def _part(self, upload_id: UUID) -> Path:
        return self._root / _STAGING / f"{upload_id}.part"

    def _path(self, key: str) -> Path:
        path = self._root / key
        if ".." in path.parts or not key.startswith((f"{_BLOBS}/", f"{_STAGING}/")):
            raise ValueError(f"{key!r} is not a key of this store")
        return path

    def _list(self, pattern: str, upload_of: Callable[[Path], str]) -> list[tuple[UUID, str]]:
        found = []
        for path in self._root.glob(pattern):
            try:
                upload_id = UUID(upload_of(path))
            except ValueError:  # not ours: never touched
                continue
            found.append((upload_id, path.relative_to(self._root).as_posix()))
        return found


class FolderStagedBlob:
    """A file under `staging` until `publish` renames it into place."""

    def __init__(self, root: Path, upload_id: UUID, path: Path, file: BinaryIO) -> None:
        self._root = root
        self._upload_id = upload_id
        self._path = path
        self._file = file
        self._written_bytes = 0
        self._on_its_way_bytes = 0

    async def write(self, chunk: Chunk) -> None:
        with disk_errors():
            await asyncio.to_thread(self._append, chunk)

    async def publish(self, sha256: str) -> str:
        key = _key(sha256, self._upload_id)
        with disk_errors():
            await asyncio.to_thread(self._publish, self._root / key)
        return key

    async def abandon(self) -> None:
        with disk_errors():
            await asyncio.to_thread(self._file.close)

    async def discard(self) -> None:
        with disk_errors():
            await asyncio.to_thread(self._discard)

    def _append(self, chunk: Chunk) -> None:
        _write(self._file, chunk)
        self._written_bytes += len(chunk)
        fresh_bytes = self._written_bytes - self._on_its_way_bytes
        if fresh_bytes >= _WRITE_BACK_BYTES:
            # Linux begins to write what is not on the disk yet (posix_fadvise(2)), so that the sync at the end finds
            # little left to wait for; fresh pages stay cached.
            os.posix_fadvise(self._file.fileno(), self._on_its_way_bytes, fresh_bytes, os.POSIX_FADV_DONTNEED)
            self._on_its_way_bytes = self._written_bytes

    def _publish(self, target: Path) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        move(self._path, target)
        self._path = target

    def _discard(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


class FolderResumableBlob:
    """A file under `staging`, locked (flock(2)) as long as it is open: the lock of a killed process is gone with it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def write(self, chunk: Chunk) -> None:
        with disk_errors():
            await asyncio.to_thread(_write, self._file, chunk)

    async def sync(self) -> None:
        with disk_errors():
            await asyncio.to_thread(os.fdatasync, self._file.fileno())

    def read(self, start: int, length: int) -> AsyncGenerator[bytes, None]:
        return _pieces(self._file, start, start + length, StagedBytesLost("A part of the upload is not there"))

    async def close(self) -> None:
        await asyncio.to_thread(self._file.close)


class FolderBlobReader:
    """An open file; positions are absolute, so that it has no state but the descriptor."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def read(self, start: int, length: int) -> AsyncGenerator[bytes, None]:
        too_short = BlobStoreUnavailable("The file is shorter than its record says; tell an operator")
        return _pieces(self._file, start, start + length, too_short)

    async def close(self) -> None:
        await asyncio.to_thread(self._file.close)


def _key(sha256: str, upload_id: UUID) -> str:
    return f"{_BLOBS}/{sha256[:2]}/{sha256}.{upload_id}"


async def _pieces(file: BinaryIO, start: int, end: int, too_short: TelarError) -> AsyncGenerator[bytes, None]:
    """The bytes of a file in pieces; while one is used, a thread reads the next. Raises `too_short` at its end."""
    loop = asyncio.get_running_loop()

    def begin() -> asyncio.Future[bytes] | None:
        if start >= end:
            return None
        return loop.run_in_executor(None, os.pread, file.fileno(), min(_READ_BYTES, end - start), start)

    ahead = begin()
    try:
        while ahead is not None:
            with disk_errors():
                piece = await asyncio.shield(ahead)
            if not piece:
                raise too_short
            start += len(piece)
            ahead = begin()
            yield piece
    finally:
        if ahead is not None:  # the file must stay open until no thread reads it
            await asyncio.gather(ahead, return_exceptions=True)


def _write(file: BinaryIO, chunk: Chunk) -> None:
    rest = memoryview(chunk)
    while rest:  # an unbuffered write may take less than it was given
        rest = rest[file.write(rest) :]
