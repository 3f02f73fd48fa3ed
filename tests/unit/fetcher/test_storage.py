"""The picture folder: atomic, and safe for several pictures of one document at once."""

import asyncio
import errno
import hashlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.common.errors import StorageFull
from services.fetcher.adapters.storage import FolderStore
from services.fetcher.adapters.storage import folder as folder_module
from services.fetcher.models import Item
from services.fetcher.ports import Body, Writing


def item(position: int = 1) -> Item:
    return Item(
        id=f"job:{position}",
        job_id="job",
        document_id="1",
        search_field="image",
        position=position,
        folder="shop/products/1-image",
        url="http://x/1",
        domain="x",
    )


def body(data: bytes) -> Body:
    return Body(data, None, len(data), hashlib.sha256(data).hexdigest())


def files(folder: Path, pattern: str) -> list[Path]:
    return [found for found in folder.rglob(pattern) if found.is_file()]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FolderStore]:
    made = FolderStore(tmp_path)
    await made.start()
    yield made
    await made.close()


def writing(number: int, data: bytes, extension: str, entry: dict[str, Any]) -> Writing:
    return Writing(item(number), entry, body(data), extension)


async def test_many_pictures_of_one_document_lose_no_metadata(tmp_path: Path) -> None:
    stores = [FolderStore(tmp_path) for _ in range(4)]
    for store in stores:
        await store.start()
    results = await asyncio.gather(
        *(
            stores[batch % 4].write(
                [writing(number, b"%d" % number, ".jpg", {"n": number}) for number in range(batch, 41, 8)]
            )
            for batch in range(1, 9)
        )
    )
    assert {error for errors in results for error in errors} == {None}
    metadata = json.loads((tmp_path / "shop/products/1-image/metadata.json").read_bytes())
    assert [entry["n"] for entry in metadata["pictures"]] == list(range(1, 41))
    assert len(files(tmp_path / "shop", "*")) == 41
    for store in stores:
        await store.close()
    assert files(tmp_path / ".spool", "*") == []


async def test_a_picture_fetched_again_in_another_format_replaces_the_former(
    tmp_path: Path, store: FolderStore
) -> None:
    await store.write([writing(1, b"old", ".jpg", {})])
    new = writing(1, b"new", ".png", {})
    await store.write([new])
    assert new.path == "shop/products/1-image/original/img_001.png"
    names = [found.name for found in (tmp_path / "shop/products/1-image/original").iterdir()]
    assert names == ["img_001.png"]


async def test_a_failed_refetch_keeps_the_file_but_tells_of_the_failure(tmp_path: Path, store: FolderStore) -> None:
    kept = writing(1, b"old", ".jpg", {"status": "completed"})
    await store.write([kept])
    await store.write([Writing(item(), {"status": "failed"})])
    assert kept.path is not None
    found = await store.file(kept.path)
    assert found is not None
    assert found.local is not None
    assert found.local.read_bytes() == b"old"
    metadata = json.loads((tmp_path / "shop/products/1-image/metadata.json").read_bytes())
    assert metadata["pictures"] == [{"position": 1, "status": "failed", "file": None, "processed": []}]


async def test_a_write_that_fails_leaves_nothing_behind_and_harms_no_other(tmp_path: Path, store: FolderStore) -> None:
    other = replace(item(2), folder="shop/products/2-image")
    gone = Writing(item(), {}, Body(None, tmp_path / "gone", 3, ""), ".jpg")
    errors = await store.write([gone, Writing(other, {}, body(b"x"), ".jpg")])
    assert [type(error) for error in errors] == [FileNotFoundError, type(None)]
    assert sorted(found.name for found in files(tmp_path / "shop", "*")) == ["img_002.jpg", "metadata.json"]
    assert files(tmp_path / ".spool", "*") == []


async def test_what_a_dead_process_left_in_the_spool_goes_and_a_live_ones_stays(tmp_path: Path) -> None:
    alive, dead = FolderStore(tmp_path), tmp_path / ".spool" / "dead"
    await alive.start()
    (alive.spool / "body").write_bytes(b"mine")
    dead.mkdir()
    (dead / "body").write_bytes(b"lost")
    next_one = FolderStore(tmp_path)
    await next_one.start()
    assert not dead.exists()
    assert (alive.spool / "body").read_bytes() == b"mine"
    await alive.close()
    await next_one.close()


async def test_paths_that_lead_out_of_the_store_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    store = FolderStore(tmp_path / "root")
    assert await store.file("../secret") is None
    assert await store.file("link") is None
    assert await store.file("/etc/passwd") is None


async def test_equal_pictures_lie_on_the_disk_once(tmp_path: Path, store: FolderStore) -> None:
    documents = [replace(item(number), folder=f"shop/products/{number}-image") for number in range(1, 4)]
    await store.write([Writing(document, {}, body(b"same"), ".jpg") for document in documents[:2]])
    large = store.spool / "large"
    large.write_bytes(b"same")
    await store.write([Writing(documents[2], {}, replace(body(b"same"), data=None, file=large), ".jpg")])
    assert not large.exists()
    pictures = files(tmp_path / "shop", "img_*")
    assert {picture.read_bytes() for picture in pictures} == {b"same"}
    assert len({picture.stat().st_ino for picture in pictures}) == 1
    assert {picture.stat().st_nlink for picture in pictures} == {4}
    assert files(tmp_path / ".spool", "*") == []


async def test_a_new_picture_leaves_the_page_cache_once_it_is_on_the_disk(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(folder_module, "sync", lambda _: calls.append("sync"))
    monkeypatch.setattr(os, "posix_fadvise", lambda handle, *_: calls.append(os.pread(handle, 9, 0).decode()))
    first, twin, other = writing(1, b"a picture", ".jpg", {}), writing(2, b"a picture", ".jpg", {}), item(3)
    assert await store.write([first, twin, Writing(other, {}, body(b"its own"), ".jpg")]) == [None, None, None]
    assert calls == ["sync", "a picture", "its own", "sync"]


async def test_a_replaced_picture_leaves_the_others_and_the_last_one_goes_for_good(
    tmp_path: Path, store: FolderStore
) -> None:
    def fetched(number: int, data: bytes, job_id: str = "job") -> Writing:
        document = replace(item(number), folder=f"shop/products/{number}-image")
        entry = {"status": "completed", "sha256": hashlib.sha256(data).hexdigest(), "job_id": job_id}
        return Writing(document, entry, body(data), ".jpg")

    await store.write([fetched(1, b"same"), fetched(2, b"same")])
    await store.write([fetched(1, b"other")])
    assert [found.read_bytes() for found in sorted(files(tmp_path / "shop", "img_*"))] == [b"other", b"same"]
    await store.write([fetched(1, b"same")])
    assert len(files(tmp_path / ".content", "*")) == 1
    for number in (1, 2):
        await store.remove(f"shop/products/{number}-image", "job")
    assert files(tmp_path / ".content", "*") == []
    assert files(tmp_path / "shop", "*") == []


async def test_a_content_file_that_was_cut_is_not_used(tmp_path: Path, store: FolderStore) -> None:
    await store.write([Writing(item(), {}, body(b"picture"), ".jpg")])
    (content,) = files(tmp_path / ".content", "*")
    content.write_bytes(b"pic")
    second = replace(item(), folder="shop/products/2-image")
    await store.write([Writing(second, {}, body(b"picture"), ".jpg")])
    assert (tmp_path / "shop/products/2-image/original/img_001.jpg").read_bytes() == b"picture"


async def test_a_store_without_room_takes_nothing_and_says_so(tmp_path: Path) -> None:
    full = FolderStore(tmp_path, min_free_bytes=2**62)
    await full.start()
    with pytest.raises(StorageFull):
        await full.check_room()
    errors = await full.write([writing(1, b"x", ".jpg", {})])
    assert [error.errno for error in errors if error is not None] == [errno.ENOSPC]
    assert not (tmp_path / "shop").exists()
    await full.close()
