"""The contract of the picture store, on a folder and on S3."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.common.s3 import S3Account
from services.fetcher.adapters.storage import BucketStore, FolderStore
from services.fetcher.models import Item
from services.fetcher.ports import Body, PictureStore, Result, Writing
from tests.contract.images import s3

FOLDER = "shop/products/1-image"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3.s3_server() as running:
        yield running


@pytest.fixture(params=["folder", "bucket"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PictureStore]:
    made: PictureStore
    if request.param == "folder":
        made = FolderStore(tmp_path / "store")
    else:
        made = BucketStore(account(request.getfixturevalue("endpoint")), tmp_path / "spool")
    await made.start()
    yield made
    await made.close()


def account(endpoint: str) -> S3Account:
    bucket = s3.new_bucket(endpoint).account
    return S3Account(
        bucket=bucket.bucket,
        prefix="some/where",
        region=bucket.region,
        endpoint=endpoint,
        access_key_id=bucket.access_key_id,
        secret_access_key=bucket.secret_access_key,
        allow_http=True,
    )


def item(position: int = 1, *, folder: str = FOLDER, job_id: str = "job") -> Item:
    return Item(
        id=f"{job_id}:{position}",
        job_id=job_id,
        document_id="1",
        search_field="image",
        position=position,
        folder=folder,
        url=f"http://x/{position}",
        domain="x",
    )


def body(data: bytes) -> Body:
    return Body(data, None, len(data), hashlib.sha256(data).hexdigest())


def fetched(of: Item, data: bytes, extension: str = ".jpg", results: tuple[Result, ...] = ()) -> Writing:
    entry = {
        "source_url": of.url,
        "status": "completed",
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "job_id": of.job_id,
    }
    return Writing(of, entry, body(data), extension, results)


def failed(of: Item) -> Writing:
    return Writing(of, {"source_url": of.url, "status": "failed", "job_id": of.job_id})


async def content(store: PictureStore, path: str) -> bytes | None:
    found = await store.file(path)
    if found is None:
        return None
    data = b"".join([piece async for piece in found.chunks()])
    assert len(data) == found.size_bytes
    return data


async def metadata(store: PictureStore, folder: str = FOLDER) -> dict[str, Any]:
    data = await content(store, f"{folder}/metadata.json")
    assert data is not None
    found: dict[str, Any] = json.loads(data)
    return found


async def test_a_picture_its_results_and_its_metadata_lie_where_they_should(store: PictureStore) -> None:
    small = Result("thumbnail-64.jpg", b"small", {"processor": "thumbnail-64", "width": 64})
    value = Result(None, b"", {"processor": "phash", "value": "ff"})
    assert await store.write([fetched(item(), b"picture", results=(small, value))]) == [None]
    assert await content(store, f"{FOLDER}/original/img_001.jpg") == b"picture"
    assert await content(store, f"{FOLDER}/processed/img_001-thumbnail-64.jpg") == b"small"
    found = await metadata(store)
    assert (found["database"], found["collection"], found["document_id"]) == ("shop", "products", "1")
    (entry,) = found["pictures"]
    assert entry["file"] == "original/img_001.jpg"
    assert entry["processed"] == [
        {"processor": "thumbnail-64", "width": 64, "file": "processed/img_001-thumbnail-64.jpg"},
        {"processor": "phash", "value": "ff", "file": None},
    ]


async def test_bodies_in_files_are_stored_and_used_up(store: PictureStore) -> None:
    file = store.spool / "body"
    data = b"x" * 3_000_000
    await asyncio.to_thread(file.write_bytes, data)
    large = replace(fetched(item(), data), body=Body(None, file, len(data), hashlib.sha256(data).hexdigest()))
    assert await store.write([large]) == [None]
    assert not await asyncio.to_thread(file.exists)
    assert await content(store, f"{FOLDER}/original/img_001.jpg") == data


async def test_many_writers_of_one_document_lose_no_metadata(store: PictureStore) -> None:
    batches = [
        store.write([fetched(item(position), b"%d" % position) for position in range(first, 25, 6)])
        for first in range(1, 7)
    ]
    assert {error for errors in await asyncio.gather(*batches) for error in errors} == {None}
    assert [entry["position"] for entry in (await metadata(store))["pictures"]] == list(range(1, 25))


async def test_a_picture_fetched_again_in_another_format_replaces_the_former(store: PictureStore) -> None:
    result = Result("thumbnail-64.jpg", b"small", {"processor": "thumbnail-64"})
    await store.write([fetched(item(), b"old", results=(result,))])
    await store.write([fetched(item(), b"new", ".png")])
    assert await content(store, f"{FOLDER}/original/img_001.png") == b"new"
    assert await store.file(f"{FOLDER}/original/img_001.jpg") is None
    assert await store.file(f"{FOLDER}/processed/img_001-thumbnail-64.jpg") is None


async def test_a_failed_refetch_keeps_the_file_but_tells_of_the_failure(store: PictureStore) -> None:
    await store.write([fetched(item(), b"old")])
    await store.write([failed(item())])
    assert await content(store, f"{FOLDER}/original/img_001.jpg") == b"old"
    assert [entry["status"] for entry in (await metadata(store))["pictures"]] == ["failed"]


async def test_what_is_known_of_a_picture_is_of_its_url_and_its_whole_file(store: PictureStore) -> None:
    assert not await store.holds("shop", "products")
    assert await store.known(item()) is None
    await store.write([fetched(item(), b"picture"), failed(item(2))])
    assert await store.holds("shop", "products")
    assert not await store.holds("shop", "product")
    known = await store.known(item())
    assert known is not None
    assert known["bytes"] == 7
    assert await store.known(item(2)) is None
    assert await store.known(replace(item(), url="http://x/other")) is None


async def test_an_unchanged_picture_stays_and_its_entry_learns(store: PictureStore) -> None:
    await store.write([fetched(item(), b"picture")])
    await store.write([Writing(item(job_id="later"), {"job_id": "later", "checked_at": "now"}, keep=True)])
    assert await content(store, f"{FOLDER}/original/img_001.jpg") == b"picture"
    (entry,) = (await metadata(store))["pictures"]
    assert (entry["bytes"], entry["job_id"], entry["checked_at"]) == (7, "later", "now")
    assert entry["file"] == "original/img_001.jpg"


async def test_a_jobs_pictures_go_and_those_of_later_jobs_stay(store: PictureStore) -> None:
    result = Result("phash.png", b"x", {"processor": "x"})
    await store.write([fetched(item(1), b"one", results=(result,)), fetched(item(2), b"two")])
    await store.write([fetched(item(2, job_id="later"), b"two again")])
    for _ in range(2):
        await store.remove(FOLDER, "job")
        assert await store.file(f"{FOLDER}/original/img_001.jpg") is None
        assert await store.file(f"{FOLDER}/processed/img_001-phash.png") is None
        assert await content(store, f"{FOLDER}/original/img_002.jpg") == b"two again"
        assert [entry["position"] for entry in (await metadata(store))["pictures"]] == [2]
    await store.remove(FOLDER, "later")
    assert await store.file(f"{FOLDER}/metadata.json") is None
    assert not await store.holds("shop", "products") or isinstance(store, FolderStore)
    await store.remove(FOLDER, "later")
    await store.write([fetched(item(1), b"again")])
    assert await content(store, f"{FOLDER}/original/img_001.jpg") == b"again"


async def test_paths_that_lead_elsewhere_are_no_files(store: PictureStore) -> None:
    for path in ("../secret", "/etc/passwd", "a/../../b", "", "shop/products"):
        assert await store.file(path) is None
    await store.check_room()


async def test_a_bucket_that_is_not_there_stops_the_start(endpoint: str, tmp_path: Path) -> None:
    gone = replace(account(endpoint), bucket="no-such-bucket")
    with pytest.raises(OSError, match="Input/output"):
        await BucketStore(gone, tmp_path).start()


async def test_a_bucket_that_does_not_answer_is_a_failure_of_reading_and_of_each_writing(
    endpoint: str, tmp_path: Path
) -> None:
    store = BucketStore(account(endpoint), tmp_path / "spool")
    await store.start()
    lost = BucketStore(replace(account(endpoint), bucket="no-such-bucket"), tmp_path / "spool")
    with pytest.raises(OSError, match="Input/output"):
        await lost.holds("shop", "products")
    errors = await lost.write([fetched(item(), b"picture")])
    assert [type(error) for error in errors] == [OSError]
    await store.close()
