"""What an attempt asks a server for, by what is known of its picture already."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from services.fetcher.domain.jobs import ItemState
from services.fetcher.models import Item
from services.fetcher.operations.worker import ItemWorker
from services.fetcher.ports import Decoder, DownloadFailed, NotModified, PictureStore, Wish
from tests.integration.fetcher.records import item, job

STORED = {"etag": '"1"', "bytes": 9, "file": "original/img_001.jpg", "perceptual_hash": "00", "processed": []}


class Unchanged:
    """A server whose pictures are as they were, and has none for who asks for all of one."""

    async def fetch(self, url: str, wish: Wish) -> NotModified:
        if wish.etag is None:
            raise DownloadFailed("http-404", "The server answered 404.")
        assert wish.etag == STORED["etag"]
        return NotModified(url)


class Stored:
    async def known(self, _: Item) -> Mapping[str, Any]:
        return STORED


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({"conditional": True}, ItemState.COMPLETED),
        ({"conditional": None}, ItemState.COMPLETED),
        ({"conditional": False}, ItemState.FAILED),
        ({"conditional": None, "refetch": True}, ItemState.FAILED),
    ],
    ids=["fetched before", "not yet known", "never fetched", "all again"],
)
async def test_a_stored_picture_is_asked_for_if_it_changed_also_while_the_plan_begins(
    options: dict[str, Any], state: ItemState
) -> None:
    decoder, store = cast("Decoder", None), cast("PictureStore", Stored())
    worker = ItemWorker(Unchanged(), decoder, store, retry_base_s=1, retry_cap_s=1, now_ms=lambda: 1)
    outcome = await worker.run(item(1), job(**options), max_attempts=1, downloaded=lambda _: None)
    assert outcome.state is state
