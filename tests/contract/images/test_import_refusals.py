"""Imports that are refused or fail: with clear words, and with nothing left behind."""

import gzip
import hashlib
import json
import lzma
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from services.images.adapters import http_source
from services.images.service import Verification
from tests.contract.images.harness import Service, running
from tests.contract.images.importing import (
    begin,
    begun,
    cancel,
    ended,
    imported,
    nothing_is_left,
    operation,
    refused,
    shown,
)
from tests.contract.images.web import Web
from tests.corpora.images import disks
from tests.corpora.images.hostile import HOSTILE

Eventually = Callable[..., Awaitable[None]]
MIB = 1 << 20
SECRET = "s3cr3t-signature"


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TELAR_OUTBOUND_ALLOW_NETWORKS", "127.0.0.1/32")
        patch.setattr(http_source, "_RATE_WINDOW_S", 0.5)
        options: dict[str, Any] = {"max_file_size": 32 * MIB, "import_attempts": 2, "sweep_every_s": 3600}
        async with running(database_url, tmp_path_factory.mktemp("images"), **options) as service:
            yield service


@pytest.mark.parametrize(
    ("url", "slug"),
    [
        ("ftp://example.org/d.iso", "url-refused"),
        ("file:///etc/passwd", "url-refused"),
        ("http://user:password@example.org/d.iso", "url-refused"),
        ("d.iso", "url-refused"),
        ("http://example.org/d iso", "url-refused"),
        ("http://example.org:22/d.iso", "url-refused"),
        ("http://169.254.169.254/latest/meta-data.iso", "address-refused"),
        ("http://10.0.0.1/d.iso", "address-refused"),
        ("http://2130706434/d.iso", "address-refused"),
        ("http://[::1]/d.iso", "address-refused"),
        ("http://example.org/", "invalid"),
        ("http://example.org/latest", "invalid"),
        ("http://example.org/d.ova", "invalid"),
        ("http://example.org/d.iso.bz2", "invalid"),
        ("http://example.org/.xz", "invalid"),
        ("http://example.org/d.gz", "invalid"),
        ("http://example.org/?file=d.iso", "invalid"),
    ],
)
async def test_a_url_that_cannot_work_is_refused_at_once(service: Service, url: str, slug: str) -> None:
    user = await service.new_user()
    answer = await begin(service, user, url)
    assert (answer.status_code, answer.json()["type"]) == (422, f"/problems/{slug}")
    if slug == "invalid":
        assert "give `format` (iso, qcow2, vmdk, vhd, raw)" in answer.json()["detail"]
    assert service.rows("SELECT count(*) FROM images WHERE owner_id = %s", user) == [(0,)]


@pytest.mark.parametrize("field", ["owner_id", "status", "derived_from", "headers"])
async def test_a_field_that_is_not_the_clients_to_set_is_refused(service: Service, field: str) -> None:
    answer = await begin(service, await service.new_user(), "http://example.org/d.iso", **{field: "x"})
    assert answer.status_code == 422


async def test_a_quota_that_is_used_up_refuses_at_once(service: Service, web: Web) -> None:
    user = await service.new_user(image_bytes=511)
    page = web.publish("/never.qcow2", disks.qcow2())
    answer = await begin(service, user, web.url("/never.qcow2"))
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/quota-exceeded")
    assert page.requests == []
    assert service.rows("SELECT count(*) FROM images WHERE owner_id = %s", user) == [(0,)]


@pytest.mark.parametrize("tells_length", [True, False], ids=["told", "chunked"])
async def test_a_quota_that_is_too_small_is_never_exceeded_by_a_byte(
    service: Service, web: Web, tells_length: bool
) -> None:
    content = os.urandom(24 * MIB)
    page = web.publish("/quota.img", content, tells_length=tells_length)
    problem = await refused(service, await service.new_user(image_bytes=len(content) - 1), web.url("/quota.img"))
    assert problem["type"] == "/problems/quota-exceeded"
    assert f"the limit is {len(content) - 1}" in problem["detail"]
    if tells_length:
        assert page.sent_bytes < len(content)  # refused by its length alone
    image = await imported(service, await service.new_user(image_bytes=len(content)), web.url("/quota.img"))
    assert image["size_bytes"] == len(content)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 501])
async def test_a_final_answer_of_the_source_ends_the_import_and_is_told(
    service: Service, web: Web, status: int
) -> None:
    page = web.publish("/no.qcow2", statuses=[status])
    problem = await refused(service, await service.new_user(), web.url("/no.qcow2"))
    assert problem["type"] == "/problems/source-refused"
    assert f"answered {status} " in problem["detail"]
    assert len(page.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_source_that_cannot_at_the_moment_is_asked_again(service: Service, web: Web, status: int) -> None:
    page = web.publish("/later.qcow2", disks.qcow2(), statuses=[status], headers={"retry-after": "0"})
    image = await imported(service, await service.new_user(), web.url("/later.qcow2"))
    assert image["status"] == "active"
    assert len(page.requests) == 2


async def test_a_source_that_never_can_is_given_up_with_its_answer(service: Service, web: Web) -> None:
    page = web.publish("/never.qcow2", statuses=[503] * 9)
    problem = await refused(service, await service.new_user(), web.url("/never.qcow2"))
    assert "503 Service Unavailable" in problem["detail"]
    assert len(page.requests) == 2


@pytest.mark.parametrize("target", ["http://169.254.169.254/d.qcow2", "http://127.0.0.2:1/d.qcow2", "file:///d.qcow2"])
async def test_a_redirect_to_where_nobody_may_go_is_refused(service: Service, web: Web, target: str) -> None:
    web.publish("/moved.qcow2", statuses=[302], headers={"location": target})
    problem = await refused(service, await service.new_user(), web.url("/moved.qcow2"))
    assert problem["type"] in ("/problems/address-refused", "/problems/url-refused")
    assert "169.254" not in json.dumps(problem)


async def test_a_source_that_cuts_its_file_off_is_told_of(service: Service, web: Web) -> None:
    web.publish("/cut.img", os.urandom(MIB), cuts=[MIB // 2] * 9, ranges=False)
    problem = await refused(service, await service.new_user(), web.url("/cut.img"))
    assert problem["type"] == "/problems/source-interrupted"
    assert "length differs from its Content-Length" in problem["detail"]


async def test_a_source_that_drips_is_broken_off(service: Service, web: Web) -> None:
    web.publish("/drip.img", os.urandom(MIB), hold_at=65_536)
    problem = await refused(service, await service.new_user(), web.url("/drip.img"))
    assert "The source is too slow" in problem["detail"]


@pytest.mark.parametrize("hostile", HOSTILE[::6], ids=lambda hostile: hostile.what)
async def test_a_hostile_file_is_rejected_with_its_reason(service: Service, web: Web, hostile: Any) -> None:
    web.publish(f"/hostile/{hostile.filename}", hostile.content)
    problem = await refused(service, await service.new_user(), web.url(f"/hostile/{hostile.filename}"))
    assert problem["type"] == f"/problems/{hostile.slug}"
    assert hostile.reason in problem["detail"]


async def test_another_digest_than_announced_is_rejected_with_both(service: Service, web: Web) -> None:
    content = disks.qcow2()
    packed = gzip.compress(content)
    web.publish("/d.qcow2.gz", packed)
    problem = await refused(service, await service.new_user(), web.url("/d.qcow2.gz"), sha256="0" * 64)
    assert problem["type"] == "/problems/digest-mismatch"
    for digest in (hashlib.sha256(content).hexdigest(), hashlib.sha256(packed).hexdigest(), "0" * 64):
        assert digest in problem["detail"]


@pytest.mark.parametrize("tells_length", [True, False], ids=["told", "chunked"])
async def test_a_file_beyond_the_limit_is_too_large(service: Service, web: Web, tells_length: bool) -> None:
    page = web.publish("/large.img", bytes(33 * MIB), tells_length=tells_length)
    problem = await refused(service, await service.new_user(), web.url("/large.img"))
    assert (problem["type"], problem["status"]) == ("/problems/image-too-large", 413)
    assert "33.6 MB" in problem["detail"]
    assert len(page.requests) == 1


@pytest.mark.parametrize("extension", ["gz", "xz"])
async def test_a_bomb_is_stopped_by_its_size(service: Service, web: Web, extension: str) -> None:
    pack = gzip.compress if extension == "gz" else lzma.compress
    web.publish(f"/bomb.img.{extension}", pack(bytes(256 * MIB)))
    problem = await refused(service, await service.new_user(), web.url(f"/bomb.img.{extension}"))
    assert problem["type"] == "/problems/image-too-large"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(disks.qcow2())[:-9], "cut off"),
        (gzip.compress(disks.qcow2()) + b"<html>", "Behind the end"),
        (disks.qcow2(), "is not a gzip file"),
        (b"", "cut off"),
    ],
)
async def test_a_bad_packed_file_is_told_of(service: Service, web: Web, content: bytes, words: str) -> None:
    web.publish("/bad.qcow2.gz", content)
    problem = await refused(service, await service.new_user(), web.url("/bad.qcow2.gz"))
    assert problem["type"] == "/problems/compressed-file-damaged"
    assert words in problem["detail"]


async def test_a_file_of_no_bytes_is_rejected(service: Service, web: Web) -> None:
    web.publish("/empty.img", b"")
    assert "0 bytes" in (await refused(service, await service.new_user(), web.url("/empty.img")))["detail"]


async def test_a_cancelled_download_gives_everything_back(service: Service, web: Web, eventually: Eventually) -> None:
    user = await service.new_user()
    page = web.publish("/stopped.img", os.urandom(8 * MIB), hold_at=4 * MIB)
    begun_one = await begun(service, user, web.url("/stopped.img"))
    await eventually(lambda: page.sent_bytes >= 4 * MIB and service.used_bytes(user) == 8 * MIB)
    assert (await cancel(service, user, begun_one["id"])).status_code == 202
    assert (await ended(service, user, begun_one["id"]))["state"] == "cancelled"
    image = await shown(service, user, begun_one["image"]["id"])
    assert (image["status"], image["reason"]) == ("rejected", "The operation was cancelled")
    assert nothing_is_left(service, user, image["id"])
    page.released.set()
    await eventually(lambda: page.under_way == 0)
    assert page.sent_bytes < 8 * MIB  # nobody listens any more


async def test_an_import_that_waits_for_its_turn_is_cancelled_at_once(
    service: Service, web: Web, eventually: Eventually
) -> None:
    user = await service.new_user()
    page = web.publish("/waiting.img", os.urandom(MIB), hold_at=0)
    first = [await begun(service, user, web.url("/waiting.img")) for _ in range(8)]
    await eventually(lambda: page.under_way == 8)
    last = await begun(service, user, web.url("/waiting.img"))
    answer = await cancel(service, user, last["id"])
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert (await shown(service, user, last["image"]["id"]))["status"] == "rejected"
    for one in first:
        await cancel(service, user, one["id"])
    for one in first:
        assert (await ended(service, user, one["id"]))["state"] == "cancelled"
    assert service.used_bytes(user) == 0
    page.released.set()


async def test_an_import_that_is_cancelled_at_its_very_end_is_gone(
    service: Service, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, activate = await service.new_user(), Verification.activate
    web.publish("/late.qcow2", disks.qcow2(virtual_size=99 * MIB))

    async def and_then_cancelled(self: Verification, image_id: Any, verified: Any) -> None:
        await activate(self, image_id, verified)
        (found,) = service.rows("SELECT id FROM operations WHERE resource_id = %s", str(image_id))
        assert (await shown(service, user, str(image_id)))["status"] == "active"
        assert (await cancel(service, user, found[0])).status_code == 202

    monkeypatch.setattr(Verification, "activate", and_then_cancelled)
    begun_one = await begun(service, user, web.url("/late.qcow2"))
    assert (await ended(service, user, begun_one["id"]))["state"] == "cancelled"
    url = f"/api/v1/images/{begun_one['image']['id']}"
    assert (await service.http.get(url, headers=service.as_user(user))).status_code == 404
    assert nothing_is_left(service, user, begun_one["image"]["id"])


async def test_deleting_the_image_ends_its_import(service: Service, web: Web, eventually: Eventually) -> None:
    user = await service.new_user()
    page = web.publish("/deleted.img", os.urandom(24 * MIB), hold_at=4 * MIB)
    begun_one = await begun(service, user, web.url("/deleted.img"))
    await eventually(lambda: page.sent_bytes >= 4 * MIB)
    url = f"/api/v1/images/{begun_one['image']['id']}"
    assert (await service.http.delete(url, headers=service.as_user(user))).status_code == 204
    page.released.set()
    end = await ended(service, user, begun_one["id"])
    assert (end["state"], end["error"]["type"]) == ("failed", "/problems/upload-gone")
    assert nothing_is_left(service, user, begun_one["image"]["id"])


async def test_a_urls_secret_is_told_nobody_and_forgotten_at_the_end(
    service: Service, web: Web, eventually: Eventually, capfd: pytest.CaptureFixture[str]
) -> None:
    user, other = await service.new_user(), await service.new_user()
    page = web.publish("/secret.qcow2", disks.qcow2(), hold_at=0)
    answer = await begin(service, user, web.url(f"/secret.qcow2?sig={SECRET}"))
    operation_id, image_id = answer.json()["id"], answer.json()["image"]["id"]
    await eventually(lambda: page.requests)
    stored = "SELECT input::text FROM operations WHERE id = %s"
    assert SECRET in service.rows(stored, operation_id)[0][0]  # needed to go on after a restart
    strangers = service.as_user(other)
    assert (await service.http.get(f"/api/v1/operations/{operation_id}", headers=strangers)).status_code == 404
    said = [answer.text, json.dumps(await operation(service, user, operation_id))]
    page.released.set()
    await ended(service, user, operation_id)
    said += [json.dumps(await shown(service, user, image_id))]
    said += [service.rows("SELECT provenance::text FROM images WHERE id = %s", image_id)[0][0]]
    said += [event.model_dump_json() if hasattr(event, "model_dump_json") else repr(event) for event in service.heard]
    said += [*capfd.readouterr(), service.rows(stored, operation_id)[0][0]]
    failing = await begun(service, user, web.url(f"/missing.qcow2?sig={SECRET}"))
    said += [json.dumps(await ended(service, user, failing["id"])), *capfd.readouterr()]
    assert not [text for text in said if SECRET in text]
