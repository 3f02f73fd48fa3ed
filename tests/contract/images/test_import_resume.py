"""Imports whose source breaks off: what goes on, what begins anew, and that nothing is ever mixed."""

import gzip
import hashlib
import os
from collections.abc import AsyncIterator

import pytest

from tests.contract.images.harness import Service, running
from tests.contract.images.importing import begun, ended, imported, provenance, refused, shown
from tests.contract.images.web import Page, Web

MIB = 1 << 20
CONTENT, OTHER = os.urandom(6 * MIB), os.urandom(5 * MIB)
YESTERDAY = "Fri, 20 Nov 2026 10:00:00 GMT"


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TELAR_OUTBOUND_ALLOW_NETWORKS", "127.0.0.0/8")
        async with running(database_url, tmp_path_factory.mktemp("images"), import_attempts=3) as service:
            yield service


AT_MOST_AGAIN = 5 * MIB // 4
"""What is in the client's buffers when the source breaks off is lost with it."""


def ranges(page: Page) -> list[str | None]:
    return [headers.get("range") for headers in page.requests]


def is_just_before(asked: str | None, cut: int) -> bool:
    return asked is not None and cut - AT_MOST_AGAIN <= int(asked.removeprefix("bytes=").removesuffix("-")) <= cut


@pytest.mark.parametrize("tags", [{"etag": '"v1"'}, {"etag": None, "last_modified": YESTERDAY}], ids=["etag", "date"])
async def test_a_download_that_broke_off_goes_on_where_it_was(service: Service, web: Web, tags: dict[str, str]) -> None:
    page = web.publish("/d.img", CONTENT, cuts=[3 * MIB + 12_345], **tags)
    image = await imported(service, await service.new_user(), web.url("/d.img"))
    assert image["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert provenance(service, image["id"])["downloaded_sha256"] == image["sha256"]
    first, second = ranges(page)
    assert first is None
    assert is_just_before(second, 3 * MIB + 12_345)
    assert page.requests[1]["if-range"] == (tags["etag"] or YESTERDAY)


@pytest.mark.parametrize(
    "options",
    [
        {"ranges": False},
        {"etag": None},
        {"etag": 'W/"v1"'},
        {"etag": '"\xe9"'},
        {"etag": None, "last_modified": "Wed, 01 Jan 2110 10:00:00 GMT"},
        {"etag": None, "last_modified": "yesterday"},
    ],
    ids=["no ranges", "no validator", "weak", "not ASCII", "of the future", "no date"],
)
async def test_without_ranges_or_a_strong_validator_a_download_begins_anew(
    service: Service, web: Web, options: dict[str, object]
) -> None:
    page = web.publish("/d.img", CONTENT, cuts=[3 * MIB], **options)
    image = await imported(service, await service.new_user(), web.url("/d.img"))
    assert image["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert ranges(page) == [None, None]


@pytest.mark.parametrize("honours_if_range", [True, False])
async def test_a_file_that_changed_meanwhile_is_taken_whole_and_anew(
    service: Service, web: Web, honours_if_range: bool
) -> None:
    page = web.publish("/d.img", CONTENT, cuts=[3 * MIB], hold_at=2 * MIB, honours_if_range=honours_if_range)
    user = await service.new_user()
    begun_one = await begun(service, user, web.url("/d.img"))
    while page.sent_bytes < 2 * MIB:  # the old one is on its way
        await shown(service, user, begun_one["image"]["id"])
    changed = web.publish("/d.img", OTHER, etag='"two"', honours_if_range=honours_if_range)
    page.released.set()
    end = await ended(service, user, begun_one["id"])
    assert end["state"] == "succeeded", end
    image = await shown(service, user, begun_one["image"]["id"])
    assert image["sha256"] == hashlib.sha256(OTHER).hexdigest()
    assert service.used_bytes(user) == image["size_bytes"] == len(OTHER)
    assert provenance(service, image["id"])["etag"] == '"two"'
    first, *others = ranges(changed)
    assert is_just_before(first, 3 * MIB)
    assert others == [None] * (not honours_if_range)


async def test_breaks_that_came_further_each_time_are_no_failures(service: Service, web: Web) -> None:
    content = os.urandom(100 * MIB)
    page = web.publish("/flaky.img", content, cuts=[18 * MIB] * 5)
    image = await imported(service, await service.new_user(), web.url("/flaky.img"))
    assert image["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(page.requests) >= 6  # of three attempts
    assert page.sent_bytes < len(content) + 5 * AT_MOST_AGAIN


async def test_a_packed_file_that_broke_off_begins_anew(service: Service, web: Web) -> None:
    packed = gzip.compress(CONTENT, 1)
    page = web.publish("/d.img.gz", packed, cuts=[4 * MIB])
    image = await imported(service, await service.new_user(), web.url("/d.img.gz"))
    assert image["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert provenance(service, image["id"])["downloaded_sha256"] == hashlib.sha256(packed).hexdigest()
    assert ranges(page) == [None, None]


async def test_a_file_that_became_shorter_than_what_is_here_is_taken_anew(service: Service, web: Web) -> None:
    page = web.publish("/d.img", CONTENT, cuts=[5 * MIB], hold_at=4 * MIB)
    user = await service.new_user()
    begun_one = await begun(service, user, web.url("/d.img"))
    while page.sent_bytes < 4 * MIB:
        await shown(service, user, begun_one["image"]["id"])
    web.publish("/d.img", OTHER[:MIB], statuses=[416], etag='"two"')
    page.released.set()
    assert (await ended(service, user, begun_one["id"]))["state"] == "succeeded"
    image = await shown(service, user, begun_one["image"]["id"])
    assert image["sha256"] == hashlib.sha256(OTHER[:MIB]).hexdigest()


async def test_a_source_that_always_breaks_off_is_given_up(service: Service, web: Web) -> None:
    page = web.publish("/never.img", bytes(40 * MIB), cuts=[4 * MIB] * 9)
    problem = await refused(service, await service.new_user(), web.url("/never.img"))
    assert problem["type"] == "/problems/source-interrupted"
    first, *others = ranges(page)
    assert first is None
    assert len(others) == 2
    assert None not in others
