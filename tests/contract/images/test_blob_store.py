"""What every blob store must do, checked on each."""

import gc
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from libs.common.ids import uuid7
from services.images.adapters.folder_blobs import FolderBlobStore
from services.images.adapters.s3_blobs import S3BlobStore
from services.images.errors import BlobStoreUnavailable, ImageNotFound, StagedBytesLost
from services.images.ports import BlobStore, ResumableBlob
from tests.contract.images.s3 import new_bucket, s3_server

MIB = 1 << 20
SHA256 = "ab" * 32
CONTENT = hashlib.shake_256(b"telar").digest(20 * MIB + 12_345)
"""More than S3 keeps in memory, so that some of it is always there before the rest."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["folder", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    made: BlobStore
    if request.param == "folder":
        made = FolderBlobStore(tmp_path)
    else:
        endpoint: str = request.getfixturevalue("endpoint")
        made = S3BlobStore(new_bucket(endpoint).account, max_file_bytes=1 << 34)
    await made.prepare()
    await made.check()
    return made


async def stored(store: BlobStore, content: bytes = CONTENT) -> tuple[UUID, str]:
    upload_id = uuid7()
    staged = await store.stage(upload_id)
    for start in range(0, len(content), MIB):
        await staged.write(bytearray(content[start : start + MIB]))
    return upload_id, await staged.publish(SHA256)


async def resumed(store: BlobStore, upload_id: UUID, start: int, end: int) -> None:
    """Write that part of the content and make it durable."""
    blob = await store.resume(upload_id, start)
    for position in range(start, end, MIB):
        await blob.write(CONTENT[position : min(end, position + MIB)])
    await blob.sync()
    await blob.close()


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def read(store: BlobStore, key: str, start: int = 0, length: int = len(CONTENT)) -> bytes:
    reader = await store.open(key)
    try:
        return await whole(reader.read(start, length))
    finally:
        await reader.close()


async def is_empty(store: BlobStore) -> bool:
    return list(await store.staged()) == [] and list(await store.published()) == []


async def test_what_is_abandoned_is_let_go_of_and_left_to_the_sweep(store: BlobStore) -> None:
    upload_id = uuid7()
    staged = await store.stage(upload_id)
    await staged.write(CONTENT)
    for _ in range(2):
        await staged.abandon()
    del staged
    gc.collect()  # what still held a file would warn, and fail the test
    await store.discard(upload_id)
    assert await is_empty(store)


async def test_what_was_published_is_read_back_whole_and_in_part(store: BlobStore) -> None:
    _, key = await stored(store)
    assert await read(store, key) == CONTENT
    for start, length in ((1_234_567, 10), (MIB - 1, 2), (2 * MIB - 5, 4 * MIB + 10), (len(CONTENT) - 1, 1), (5, 0)):
        assert await read(store, key, start, length) == CONTENT[start : start + length]


async def test_a_small_file_is_a_file_too(store: BlobStore) -> None:
    _, key = await stored(store, b"x" * 512)
    assert await read(store, key, 0, 512) == b"x" * 512


async def test_what_a_caller_does_with_a_chunk_after_it_was_written_does_not_matter(store: BlobStore) -> None:
    staged, chunk = await store.stage(uuid7()), bytearray(MIB)
    for start in range(0, 20 * MIB, MIB):
        chunk[:] = CONTENT[start : start + MIB]
        await staged.write(chunk)
    assert await read(store, await staged.publish(SHA256), 0, 20 * MIB) == CONTENT[: 20 * MIB]


async def test_pieces_are_of_bounded_size(store: BlobStore) -> None:
    _, key = await stored(store)
    reader = await store.open(key)
    assert max([len(piece) async for piece in reader.read(0, len(CONTENT))]) <= 4 * MIB
    await reader.close()


async def test_a_reader_may_stop_anywhere(store: BlobStore) -> None:
    _, key = await stored(store)
    reader = await store.open(key)
    pieces = reader.read(0, len(CONTENT))
    assert CONTENT.startswith(await anext(pieces))
    await pieces.aclose()
    await reader.close()


async def test_a_file_that_is_shorter_than_its_record_says_is_told(store: BlobStore) -> None:
    _, key = await stored(store)
    with pytest.raises(BlobStoreUnavailable, match="shorter"):
        await read(store, key, 0, len(CONTENT) + 1)


async def test_a_staged_blob_is_listed_as_such_until_it_is_published(store: BlobStore) -> None:
    upload_id = uuid7()
    staged = await store.stage(upload_id)
    await staged.write(CONTENT)
    assert [found for found, _ in await store.staged()] == [upload_id]
    assert list(await store.published()) == []
    key = await staged.publish(SHA256)
    assert list(await store.staged()) == []
    assert list(await store.published()) == [(upload_id, key)]


async def test_what_a_killed_process_staged_can_be_deleted(store: BlobStore) -> None:
    staged = await store.stage(uuid7())
    await staged.write(CONTENT)
    upload_id = uuid7()
    await resumed(store, upload_id, 0, 2 * MIB)
    for _, key in await store.staged():
        await store.delete(key)
        await store.delete(key)
    assert await is_empty(store)
    await staged.discard()


async def test_a_discarded_blob_is_gone_published_or_not(store: BlobStore) -> None:
    for content in (b"small", CONTENT):
        for publish in (False, True):
            staged = await store.stage(uuid7())
            await staged.write(content)
            if publish:
                await staged.publish(SHA256)
            await staged.discard()
            await staged.discard()
            assert await is_empty(store)


async def test_equal_contents_are_kept_under_keys_of_their_own(store: BlobStore) -> None:
    (_, one), (_, two) = await stored(store), await stored(store)
    assert one != two
    await store.delete(one)
    await store.delete(one)
    assert await read(store, two) == CONTENT


async def test_a_blob_deleted_while_it_is_read_is_read_to_its_end_or_not_at_all(store: BlobStore) -> None:
    _, key = await stored(store)
    reader = await store.open(key)
    await store.delete(key)
    try:
        found = await whole(reader.read(0, len(CONTENT)))
    except BlobStoreUnavailable:
        found = CONTENT
    assert found == CONTENT
    await reader.close()
    with pytest.raises(ImageNotFound):
        await store.open(key)


@pytest.mark.parametrize("key", ["../secret", "/etc/passwd", "blobs/../../secret", "secret", ""])
async def test_a_key_never_leads_out_of_the_store(store: BlobStore, key: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        await store.open(key)
    with pytest.raises(ValueError, match="is not a key"):
        await store.delete(key)


async def test_an_upload_goes_on_where_it_was_synced_as_often_as_need_be(store: BlobStore) -> None:
    upload_id, position = uuid7(), 0
    for end in (1, 700_000, 3 * MIB, 20 * MIB, len(CONTENT)):
        await resumed(store, upload_id, position, end)
        position = end
    blob = await store.resume(upload_id, position)
    assert await whole(blob.read(0, position)) == CONTENT
    assert await whole(blob.read(699_999, 5 * MIB)) == CONTENT[699_999 : 699_999 + 5 * MIB]
    await blob.close()
    assert [found for found, _ in await store.staged()] == [upload_id]
    key = await store.publish(upload_id, SHA256, size_bytes=position)
    assert await read(store, key) == CONTENT
    assert list(await store.staged()) == []
    assert list(await store.published()) == [(upload_id, key)]


@pytest.mark.parametrize("back_to", [0, 1, 700_000, 700_001, 2 * MIB, 16 * MIB, 19 * MIB])
async def test_what_lies_beyond_the_offset_is_dropped(store: BlobStore, back_to: int) -> None:
    upload_id = uuid7()
    await resumed(store, upload_id, 0, 700_000)
    await resumed(store, upload_id, 700_000, 20 * MIB)
    await resumed(store, upload_id, back_to, back_to)
    blob = await store.resume(upload_id, back_to)
    assert await whole(blob.read(0, back_to)) == CONTENT[:back_to]
    with pytest.raises(StagedBytesLost):
        await whole(blob.read(0, back_to + 1))
    await blob.close()
    await resumed(store, upload_id, back_to, len(CONTENT))
    key = await store.publish(upload_id, SHA256, size_bytes=len(CONTENT))
    assert await read(store, key) == CONTENT


async def test_an_upload_of_which_less_is_there_than_was_recorded_is_lost(store: BlobStore) -> None:
    upload_id = uuid7()
    with pytest.raises(StagedBytesLost):
        await store.resume(upload_id, 1)
    await resumed(store, upload_id, 0, 2 * MIB)
    with pytest.raises(StagedBytesLost):
        await store.resume(upload_id, 2 * MIB + 1)
    for wrong in (2 * MIB - 1, 2 * MIB + 1):
        with pytest.raises(StagedBytesLost):
            await store.publish(upload_id, SHA256, size_bytes=wrong)
    await store.publish(upload_id, SHA256, size_bytes=2 * MIB)


async def test_publishing_again_after_a_crash_gives_the_same(store: BlobStore) -> None:
    upload_id = uuid7()
    await resumed(store, upload_id, 0, len(CONTENT))
    key = await store.publish(upload_id, SHA256, size_bytes=len(CONTENT))
    assert await store.publish(upload_id, SHA256, size_bytes=len(CONTENT)) == key
    assert await read(store, key) == CONTENT


async def test_an_upload_can_be_begun_anew(store: BlobStore) -> None:
    upload_id = uuid7()
    await resumed(store, upload_id, 0, 20 * MIB)
    await resumed(store, upload_id, 0, MIB)
    blob: ResumableBlob = await store.resume(upload_id, MIB)
    assert await whole(blob.read(0, MIB)) == CONTENT[:MIB]
    await blob.close()


async def test_a_discarded_upload_is_gone(store: BlobStore) -> None:
    upload_id = uuid7()
    await resumed(store, upload_id, 0, 20 * MIB)
    await store.discard(upload_id)
    await store.discard(upload_id)
    assert await is_empty(store)
    with pytest.raises(StagedBytesLost):
        await store.publish(upload_id, SHA256, size_bytes=20 * MIB)
