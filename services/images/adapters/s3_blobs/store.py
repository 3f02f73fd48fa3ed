"""The blob store in a bucket: objects `blobs/<upload>`; unfinished ones are multipart uploads or pieces."""

import contextlib
import re
from collections.abc import AsyncGenerator, Iterable
from datetime import UTC, datetime
from uuid import UUID

import obstore
from obstore.store import S3Store

from libs.common.s3 import S3Account, connect
from services.images.adapters.links import content_disposition
from services.images.adapters.s3_blobs.access import Range, read_ranges, s3_errors
from services.images.adapters.s3_blobs.multiparts import Multiparts
from services.images.adapters.s3_blobs.pieces import (
    STAGING,
    S3ResumableBlob,
    chain,
    drop,
    pieces,
    wind,
)
from services.images.adapters.s3_blobs.signing import presigned
from services.images.errors import BlobStoreUnavailable, ImageNotFound, StagedBytesLost
from services.images.ports import Chunk

_BLOBS = "blobs"
_MULTIPART = "multipart"
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_BLOB_KEY = re.compile(f"{_BLOBS}/({_UUID})")
_STAGED_KEY = re.compile(f"{STAGING}/({_UUID})")
_MULTIPART_KEY = re.compile(f"{_MULTIPART}/({_UUID})/(.+)")
_PROBE = f"{STAGING}/probe"
_PART_BYTES = 8 << 20
_PARTS_IN_FLIGHT = 3
_MOST_PARTS = 9_000
"""S3 takes 10,000."""


class S3BlobStore:
    """A bucket, or a part of one, that all replicas share. `max_file_bytes` decides how long a part must be."""

    def __init__(self, account: S3Account, *, max_file_bytes: int, gives_links: bool = True) -> None:
        self._account = account
        self._store = connect(account)
        self._multiparts = Multiparts(account)
        self._part_bytes = part_bytes(max_file_bytes)
        self._gives_links = gives_links

    async def prepare(self) -> None:
        """Fail now rather than at the first upload if the bucket is not there or cannot be written."""
        with s3_errors():
            await obstore.put_async(self._store, _PROBE, b"")
            await obstore.delete_async(self._store, _PROBE)

    async def check(self) -> None:
        """Raise BlobStoreUnavailable unless the bucket answers."""
        with s3_errors():
            async for _ in obstore.list(self._store, prefix=STAGING, chunk_size=1):
                break

    async def stage(self, upload_id: UUID) -> "S3StagedBlob":
        return S3StagedBlob(self._store, _key(upload_id), self._part_bytes)

    async def resume(self, upload_id: UUID, offset_bytes: int) -> S3ResumableBlob:
        await wind(self._store, upload_id, offset_bytes)
        return S3ResumableBlob(self._store, upload_id, offset_bytes)

    async def publish(self, upload_id: UUID, sha256: str, *, size_bytes: int) -> str:  # noqa: ARG002 - not in our keys
        key = _key(upload_id)
        if await self._size_of(key) != size_bytes:
            found = await pieces(self._store, upload_id)
            ranges = list(chain(found, 0, size_bytes))
            if not any(piece.end == size_bytes for piece in found) or any(piece.start == size_bytes for piece in found):
                raise StagedBytesLost(f"The upload has not {size_bytes} bytes, but more")
            await self._copy(ranges, key)
        await drop(self._store, upload_id)
        return key

    async def _copy(self, ranges: Iterable[Range], key: str) -> None:
        """Make one object of ranges of others; what an earlier try made under that key is left alone if it fails."""
        copy = S3StagedBlob(self._store, key, self._part_bytes)
        try:
            async with contextlib.aclosing(read_ranges(self._store, ranges)) as found:
                async for piece in found:
                    await copy.write(piece)
            await copy.publish("")
        finally:
            await copy.abandon()

    async def discard(self, upload_id: UUID) -> None:
        await drop(self._store, upload_id)

    async def open(self, key: str) -> "S3BlobReader":
        if _BLOB_KEY.fullmatch(key) is None:
            raise _not_a_key(key)
        size_bytes = await self._size_of(key)
        if size_bytes is None:
            raise ImageNotFound
        return S3BlobReader(self._store, key, size_bytes)

    async def delete(self, key: str) -> None:
        if (staged := _STAGED_KEY.fullmatch(key)) is not None:
            await drop(self._store, UUID(staged[1]))
        elif (multipart := _MULTIPART_KEY.fullmatch(key)) is not None:
            await self._multiparts.abort(_key(UUID(multipart[1])), multipart[2])
        elif _BLOB_KEY.fullmatch(key) is not None:
            with s3_errors():
                await obstore.delete_async(self._store, key)
        else:
            raise _not_a_key(key)

    async def link(self, key: str, *, filename: str, expires_s: int) -> str | None:
        account = self._account
        if not self._gives_links or account.access_key_id is None or account.secret_access_key is None:
            return None
        return presigned(
            "GET",
            account.url(key, for_clients=True),
            access_key_id=account.access_key_id,
            secret_access_key=account.secret_access_key.get_secret_value(),
            region=account.region,
            now=datetime.now(UTC),
            expires_s=expires_s,
            query={
                "response-content-disposition": content_disposition(filename),
                "response-content-type": "application/octet-stream",
            },
        )

    async def staged(self) -> Iterable[tuple[UUID, str]]:
        with s3_errors():
            folders = await obstore.list_with_delimiter_async(self._store, STAGING)
        found = [(UUID(match[1]), key) for key in folders["common_prefixes"] if (match := _STAGED_KEY.fullmatch(key))]
        for full_key, s3_upload_id in await self._multiparts.list(f"{_BLOBS}/"):
            key = full_key.removeprefix(self._account.full_key(""))
            if (match := _BLOB_KEY.fullmatch(key)) is not None:
                found.append((UUID(match[1]), f"{_MULTIPART}/{match[1]}/{s3_upload_id}"))
        return found

    async def published(self) -> Iterable[tuple[UUID, str]]:
        with s3_errors():
            listed = await obstore.list(self._store, prefix=_BLOBS).collect_async()
        keys = (item["path"] for item in listed)
        return [(UUID(match[1]), key) for key in keys if (match := _BLOB_KEY.fullmatch(key)) is not None]

    async def _size_of(self, key: str) -> int | None:
        try:
            with s3_errors():
                return (await obstore.head_async(self._store, key))["size"]
        except BlobStoreUnavailable as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise


class S3StagedBlob:
    """A multipart upload: parts go out while more is written; there is no object before `publish`."""

    def __init__(self, store: S3Store, key: str, part_bytes: int) -> None:
        self._store = store
        self._key = key
        self._writer = obstore.open_writer_async(store, key, buffer_size=part_bytes, max_concurrency=_PARTS_IN_FLIGHT)
        self._open = True

    async def write(self, chunk: Chunk) -> None:
        with s3_errors():
            await self._writer.write(bytes(chunk))  # kept as it is, not copied, until its part has gone out

    async def publish(self, sha256: str) -> str:  # noqa: ARG002 - the upload's id alone is the key
        self._open = False  # whatever comes of it: the writer aborts what it cannot complete
        with s3_errors():
            await self._writer.close()
        return self._key

    async def abandon(self) -> None:
        """Drop the parts, unless they have become an object."""
        if self._open:
            self._open = False
            with s3_errors(), contextlib.suppress(_AbandonedError, FileNotFoundError):
                async with self._writer:  # which aborts the multipart upload if it is left by an exception
                    raise _AbandonedError

    async def discard(self) -> None:
        await self.abandon()
        with s3_errors():
            await obstore.delete_async(self._store, self._key)


class S3BlobReader:
    """An object that was there when it was opened; if it is deleted meanwhile, reading ends with an error."""

    def __init__(self, store: S3Store, key: str, size_bytes: int) -> None:
        self._store = store
        self._key = key
        self.size_bytes = size_bytes

    def read(self, start: int, length: int) -> AsyncGenerator[bytes, None]:
        return read_ranges(self._store, [Range(self._key, start, start + length)])

    async def close(self) -> None:
        """Nothing is held between two reads."""


class _AbandonedError(Exception):
    """Tells obstore's writer to abort."""


def part_bytes(max_file_bytes: int) -> int:
    """How long the parts of a file must be for the longest one to be stored."""
    return max(_PART_BYTES, -(-max_file_bytes // _MOST_PARTS))


def _key(upload_id: UUID) -> str:
    return f"{_BLOBS}/{upload_id}"


def _not_a_key(key: str) -> ValueError:
    return ValueError(f"{key!r} is not a key of this store")
