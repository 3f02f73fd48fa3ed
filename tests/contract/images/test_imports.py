"""Imports that succeed, and what is told of them."""

import asyncio
import gzip
import hashlib
import lzma
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import zstandard

from tests.contract.images.harness import Service, running
from tests.contract.images.importing import begin, begun, ended, imported, operation, provenance, shown
from tests.contract.images.web import Web
from tests.corpora.images import disks

Eventually = Callable[..., Awaitable[None]]
MIB = 1 << 20


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TELAR_OUTBOUND_ALLOW_NETWORKS", "127.0.0.0/8")
        async with running(database_url, tmp_path_factory.mktemp("images"), max_file_size=64 * MIB) as service:
            yield service


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def test_an_import_is_answered_at_once_and_ends_as_an_active_image(
    service: Service, web: Web, eventually: Eventually
) -> None:
    user, content = await service.new_user(), disks.qcow2(file_size=3 * MIB)
    web.publish("/debian.qcow2", content, etag='"v1"', last_modified="Mon, 02 Nov 2026 10:00:00 GMT")
    answer = await begin(
        service, user, web.url("/debian.qcow2?signature=abc"), tags=["lts"], min_disk_gib=4, visibility="public"
    )
    assert answer.status_code == 202
    document = answer.json()
    assert answer.headers["location"] == f"/api/v1/operations/{document['id']}"
    assert document["kind"] == "image.import"
    assert document["resource"] == {"type": "image", "id": document["image"]["id"]}
    assert (document["image"]["status"], document["image"]["format"]) == ("queued", "qcow2")
    end = await ended(service, user, document["id"])
    assert (end["state"], end["progress"], [step["name"] for step in end["steps"]]) == (
        *("succeeded", 1.0),
        ["download", "verify", "activate"],
    )
    image = await shown(service, user, document["image"]["id"])
    assert (image["status"], image["sha256"], image["size_bytes"]) == ("active", sha256(content), len(content))
    assert (image["tags"], image["min_disk_gib"], image["visibility"]) == (["lts"], 4, "public")
    assert service.used_bytes(user) == len(content)
    await eventually(lambda: len(types_of(service, image["id"])) == 2)
    assert types_of(service, image["id"]) == ["images.image.created.v1", "images.image.activated.v1"]


def types_of(service: Service, image_id: str) -> list[str]:
    return [event.type for event in service.heard if event.subject == image_id]


async def test_provenance_tells_the_source_without_what_may_be_secret(service: Service, web: Web) -> None:
    user, content = await service.new_user(), disks.qcow2(file_size=MIB)
    web.publish("/final.qcow2", content, etag='"v1"', last_modified="Mon, 02 Nov 2026 10:00:00 GMT")
    web.publish("/latest.qcow2", statuses=[302], headers={"location": web.url("/final.qcow2?token=two")})
    image = await imported(service, user, web.url("/latest.qcow2?token=one"))
    told = provenance(service, image["id"])
    assert told | {"inspection": {}, "inspected_at": ""} == {
        "kind": "import",
        "url": web.url("/latest.qcow2"),
        "final_url": web.url("/final.qcow2"),
        "filename": "latest.qcow2",
        "etag": '"v1"',
        "last_modified": "Mon, 02 Nov 2026 10:00:00 GMT",
        "uploader_id": user,
        "downloaded_sha256": sha256(content),
        "inspection": {},
        "inspected_at": "",
    }


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": lambda content: zstandard.ZstdCompressor().compress(content),
}


@pytest.mark.parametrize("tells_length", [True, False], ids=["told", "chunked"])
@pytest.mark.parametrize("extension", PACKED)
async def test_a_packed_image_is_unpacked_while_it_arrives(
    service: Service, web: Web, extension: str, tells_length: bool
) -> None:
    user, content = await service.new_user(), disks.raw_disk(5 * MIB) + os.urandom(2 * MIB)
    packed = PACKED[extension](content[: 3 * MIB]) + PACKED[extension](content[3 * MIB :])
    web.publish(f"/disk.img.{extension}", packed, tells_length=tells_length)
    image = await imported(service, user, web.url(f"/disk.img.{extension}"))
    assert (image["format"], image["sha256"], image["size_bytes"]) == ("raw", sha256(content), len(content))
    assert service.used_bytes(user) == len(content)
    assert provenance(service, image["id"])["downloaded_sha256"] == sha256(packed)


@pytest.mark.parametrize(
    ("path", "fields", "format_name"),
    [
        ("/A.QCOW2", {}, "qcow2"),
        ("/d%69sk.qcow2", {}, "qcow2"),
        ("/latest", {"format": "qcow2"}, "qcow2"),
        ("/download.php", {"filename": "debian.qcow2"}, "qcow2"),
        ("/a.raw", {"format": "qcow2"}, "qcow2"),
        ("/folder.iso/a.b.qcow2", {}, "qcow2"),
        ("/%00%0A%1B.qcow2", {}, "qcow2"),
        ("/%e4%bd%a0%ff.qcow2", {}, "qcow2"),
    ],
)
async def test_the_format_is_what_is_said_or_what_the_name_tells(
    service: Service, web: Web, path: str, fields: dict[str, Any], format_name: str
) -> None:
    web.publish(path, disks.qcow2())
    image = await imported(service, await service.new_user(), web.url(path), **fields)
    assert image["format"] == format_name


async def test_the_announced_digest_may_be_of_the_published_file_or_of_the_image_in_it(
    service: Service, web: Web
) -> None:
    user, content = await service.new_user(), disks.qcow2(file_size=MIB)
    packed = gzip.compress(content)
    web.publish("/d.qcow2.gz", packed)
    web.publish("/d.qcow2", content)
    for path, announced in (("/d.qcow2.gz", packed), ("/d.qcow2.gz", content), ("/d.qcow2", content)):
        image = await imported(service, user, web.url(path), sha256=sha256(announced).upper())
        assert image["sha256"] == sha256(content)


async def test_a_stored_gz_file_that_the_server_calls_an_encoding_is_taken_as_it_is(service: Service, web: Web) -> None:
    content = disks.qcow2(file_size=MIB)
    packed = gzip.compress(content[:1000]) + gzip.compress(content[1000:])
    web.publish("/d.qcow2.gz", packed, headers={"content-encoding": "x-gzip"})
    image = await imported(service, await service.new_user(), web.url("/d.qcow2.gz"), sha256=sha256(packed))
    assert image["sha256"] == sha256(content)


async def test_an_encoding_that_a_server_applies_unasked_is_undone(service: Service, web: Web) -> None:
    content = disks.qcow2(file_size=MIB)
    web.publish("/d.qcow2", gzip.compress(content), headers={"content-encoding": "gzip"})
    image = await imported(service, await service.new_user(), web.url("/d.qcow2"))
    assert image["sha256"] == sha256(content)


async def test_progress_is_told_while_the_file_arrives_and_its_space_is_reserved(
    service: Service, web: Web, eventually: Eventually
) -> None:
    user, content = await service.new_user(), os.urandom(8 * MIB)
    page = web.publish("/slow.img", content, hold_at=4 * MIB)
    begun_one = await begun(service, user, web.url("/slow.img"))

    async def is_told() -> bool:
        found = await operation(service, user, begun_one["id"])
        return found["step"] == "download" and 0 < found["progress"] < 1 and " MB of 8.4 MB" in found["message"]

    await eventually(is_told)
    assert service.used_bytes(user) == len(content)
    image = await shown(service, user, begun_one["image"]["id"])
    assert (image["status"], image["size_bytes"]) == ("uploading", 0)
    page.released.set()
    assert (await ended(service, user, begun_one["id"]))["state"] == "succeeded"


async def test_twenty_parallel_imports_come_in_one_after_another_where_they_must(service: Service, web: Web) -> None:
    user = await service.new_user()
    contents = [os.urandom(2 * MIB) for _ in range(20)]
    for number, content in enumerate(contents):
        packed = number % 2
        web.publish(f"/{number}.img" + ".gz" * packed, gzip.compress(content, 1) if packed else content)
    images = await asyncio.gather(
        *(imported(service, user, web.url(f"/{number}.img" + ".gz" * (number % 2))) for number in range(20))
    )
    assert [image["sha256"] for image in images] == [sha256(content) for content in contents]
    assert service.used_bytes(user) == sum(len(content) for content in contents)


async def test_one_key_makes_one_import(service: Service, web: Web) -> None:
    user = await service.new_user()
    page = web.publish("/once.qcow2", disks.qcow2())
    wish = {"url": web.url("/once.qcow2"), "name": "x", "os_type": "Debian"}
    headers = {**service.as_user(user), "idempotency-key": "import-1"}
    answers = await asyncio.gather(
        *(service.http.post("/api/v1/images/import", headers=headers, json=wish) for _ in range(5))
    )
    (operation_id,) = {answer.json()["id"] for answer in answers}
    await ended(service, user, operation_id)
    assert len(page.requests) == 1
    assert service.rows("SELECT count(*) FROM images WHERE owner_id = %s", user) == [(1,)]


async def test_no_more_imports_run_at_a_time_than_the_setting_says(
    service: Service, web: Web, eventually: Eventually
) -> None:
    user = await service.new_user()
    page = web.publish("/many.img", os.urandom(MIB), hold_at=MIB // 2)
    begun_ones = [await begun(service, user, web.url("/many.img")) for _ in range(12)]
    await eventually(lambda: page.under_way == 8)
    states = [(await operation(service, user, one["id"]))["state"] for one in begun_ones]
    assert sorted(states) == ["pending"] * 4 + ["running"] * 8
    await service.image(user)  # nothing else waits for them
    page.released.set()
    for one in begun_ones:
        assert (await ended(service, user, one["id"]))["state"] == "succeeded"
    assert page.most_under_way == 8
