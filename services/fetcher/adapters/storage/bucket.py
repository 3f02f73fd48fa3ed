"""The documented layout in a bucket of S3 or of anything that speaks its protocol, through obstore."""

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from libs.common.errors import StorageFull
from libs.common.s3 import FAILURES, S3Account, connect, is_full
from services.fetcher.adapters.storage import metadata as meta
from services.fetcher.adapters.storage.spool import Spool
from services.fetcher.models import Item
from services.fetcher.ports import StoredFile, Writing

_AT_ONCE = 32
_TRIES = 30
_READ_BYTES = 1 << 20
_PROBE = ".spool/probe"


class BucketStore:
    """Implements `ports.PictureStore`. S3 knows no links: equal pictures are objects of their own.

    S3 knows no locks either: metadata.json is only replaced in the version that was read (`If-Match`), else read again.
    """

    def __init__(self, account: S3Account, spool_root: Path) -> None:
        self._store = connect(account)
        self._spool = Spool(spool_root)
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._full = False

    @property
    def spool(self) -> Path:
        return self._spool.path

    @property
    def partials(self) -> Path:
        return self._spool.partials

    async def start(self) -> None:
        """Fail now rather than at the first picture if the bucket is not there or cannot be written."""
        await asyncio.to_thread(self._spool.start)
        try:
            await obstore.put_async(self._store, _PROBE, b"")
            await obstore.delete_async(self._store, _PROBE)
        except BaseException as error:
            await asyncio.to_thread(self._spool.close)
            if isinstance(error, FAILURES):
                raise _os_error(error) from error
            raise

    async def close(self) -> None:
        await asyncio.to_thread(self._spool.close)

    async def check_room(self) -> None:
        """S3 says that it is full only when something is put."""
        if self._full:
            try:
                await obstore.put_async(self._store, _PROBE, b"room?")
                await obstore.delete_async(self._store, _PROBE)
            except FAILURES as error:
                raise StorageFull("The bucket for pictures is full; nothing was changed", retry_after_s=60) from error
            self._full = False

    async def write(self, batch: Sequence[Writing]) -> list[OSError | None]:
        folders: dict[str, list[int]] = {}
        for at, writing in enumerate(batch):
            folders.setdefault(writing.item.folder, []).append(at)
        errors = await asyncio.gather(
            *(self._write_folder(folder, [batch[at] for at in found]) for folder, found in folders.items())
        )
        for writing in batch:
            if writing.body is not None:
                await asyncio.to_thread(writing.body.discard)
        of_folder = dict(zip(folders, errors, strict=True))
        return [of_folder[writing.item.folder] for writing in batch]

    async def file(self, path: str) -> StoredFile | None:
        if any(part in ("", ".", "..") for part in path.split("/")):
            return None
        with _failures_of_s3():
            try:
                found = await obstore.head_async(self._store, path)
            except FileNotFoundError:
                return None
        return StoredFile(found["size"], None, lambda: self._chunks(path))

    async def holds(self, database: str, collection: str) -> bool:
        with _failures_of_s3():
            async for _ in obstore.list(self._store, prefix=f"{database}/{collection}", chunk_size=1):
                return True
        return False

    async def known(self, item: Item) -> Mapping[str, Any] | None:
        with _failures_of_s3():
            former, _ = await self._metadata(item.folder)
        entry = meta.entry_of(former, item)
        if entry is None:
            return None
        found = await self.file(f"{item.folder}/{entry['file']}")
        return entry if found is not None and found.size_bytes == entry.get("bytes") else None

    async def remove(self, folder: str, job_id: str) -> None:
        """Metadata that no longer names anything goes at last; S3 cannot tie that to the version that was read."""
        with _failures_of_s3():
            former, _ = await self._metadata(folder)
            removed = meta.remove(former, job_id)
            if removed.files:
                await obstore.delete_async(self._store, [f"{folder}/{file}" for file in removed.files])
            if former and removed.data is None:
                await obstore.delete_async(self._store, [f"{folder}/{meta.NAME}"])
            elif removed.entries:
                await self._update(folder, lambda now: meta.remove(now, job_id).data)

    async def _write_folder(self, folder: str, batch: Sequence[Writing]) -> OSError | None:
        """Pictures first, then the metadata that names them, then away with what it no longer names."""
        outdated: list[str] = []

        def merged(former: Mapping[str, Any]) -> bytes:
            result = meta.merge(former, batch)
            outdated[:] = [f"{folder}/{file}" for file in result.outdated]
            return result.data

        try:
            async with self._turns:
                for writing in batch:
                    if writing.body is not None and writing.path is not None:
                        source = writing.body.file or writing.body.data or b""
                        await obstore.put_async(self._store, writing.path, source)
                    for path, data in writing.files():
                        await obstore.put_async(self._store, path, data)
                await self._update(folder, merged)
                if outdated:
                    await obstore.delete_async(self._store, outdated)
        except FAILURES as error:
            failure = _os_error(error)
            self._full = self._full or failure.errno == errno.ENOSPC
            return failure
        return None

    async def _update(self, folder: str, change: Callable[[Mapping[str, Any]], bytes | None]) -> None:
        """Change metadata.json; begin again with what another process has made of it meanwhile."""
        for attempt in range(_TRIES):
            former, e_tag = await self._metadata(folder)
            data = change(former)
            if data is None:
                return
            mode: Any = "create" if e_tag is None else {"e_tag": e_tag}
            try:
                await obstore.put_async(self._store, f"{folder}/{meta.NAME}", data, mode=mode)
            except (AlreadyExistsError, PreconditionError):
                await asyncio.sleep(random.uniform(0, 0.02 * 2 ** min(attempt, 6)))  # noqa: S311 - jitter
                continue
            return
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    async def _metadata(self, folder: str) -> tuple[dict[str, Any], str | None]:
        try:
            found = await obstore.get_async(self._store, f"{folder}/{meta.NAME}")
            return meta.parse((await found.bytes_async()).to_bytes()), found.meta["e_tag"]
        except FileNotFoundError:
            return {}, None

    async def _chunks(self, path: str) -> AsyncIterator[bytes]:
        found = await obstore.get_async(self._store, path)
        async for piece in found.stream(min_chunk_size=_READ_BYTES):
            yield bytes(piece)


@contextlib.contextmanager
def _failures_of_s3() -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        raise _os_error(error) from error


def _os_error(error: BaseException) -> OSError:
    """What S3 says in the words of a disk; the words of S3, which may name the bucket, stay here."""
    number = errno.ENOSPC if is_full(error) else errno.EIO
    return OSError(number, os.strerror(number))
