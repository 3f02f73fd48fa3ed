"""Imports in a process of its own: killed in the middle, restarted, and measured."""

import asyncio
import gzip
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.contract.images.web import Page, Web, serving_web
from tests.integration.images.test_processes import Process, files, rows, started

Eventually = Callable[..., Awaitable[None]]
MIB = 1 << 20


@pytest.fixture
async def web(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Web]:
    monkeypatch.setenv("TELAR_OUTBOUND_ALLOW_NETWORKS", "127.0.0.0/8")
    async with serving_web() as web:
        yield web


@pytest.fixture(autouse=True)
def empty(database_url: str) -> None:
    """Each test here has the whole database to itself."""
    with psycopg.connect(database_url) as connection:
        known = connection.execute("SELECT to_regclass('images')").fetchone()
        if known is not None and known[0] is not None:
            connection.execute(
                "TRUNCATE images, image_members, blobs, uploads, quota_accounts, operations, outbox, inbox"
            )


async def begun(service: Process, url: str, **fields: Any) -> dict[str, Any]:
    wish = {"url": url, "name": "Debian 13", "os_type": "Debian", **fields}
    headers = {"authorization": service.headers["authorization"]}
    answer = await service.http.post("/api/v1/images/import", headers=headers, json=wish)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def ended(service: Process, operation_id: str, *, deadline_s: float = 90) -> dict[str, Any]:
    until = time.monotonic() + deadline_s
    headers = {"authorization": service.headers["authorization"]}
    while True:
        answer = await service.http.get(f"/api/v1/operations/{operation_id}", headers=headers)
        found: dict[str, Any] = answer.json()
        if found["state"] not in ("pending", "running"):
            return found
        assert time.monotonic() < until, found
        await asyncio.sleep(0.05)


async def killed(service: Process, database_url: str) -> None:
    """End it as a power cut does; its operations' leases have run out by the time of the next."""
    service.process.send_signal(signal.SIGKILL)
    await service.process.wait()
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE operations SET lease_until = now() - interval '1 second' WHERE state = 'running'")


def used(database_url: str) -> int:
    query = "SELECT coalesce((used->>'image_bytes')::bigint, 0) FROM quota_accounts WHERE owner_id = 'owner'"
    found: int = rows(database_url, query)[0][0]
    return found


def offset(database_url: str) -> int:
    found = rows(database_url, "SELECT offset_bytes FROM uploads")
    return int(found[0][0]) if found else -1


async def at_rest(page: Page, held_at: int, eventually: Eventually) -> None:
    """The server has sent what it sends before it waits, and the service has taken it."""
    await eventually(lambda: page.under_way == 1 and page.sent_bytes >= held_at, 30)


async def test_a_download_goes_on_where_the_killed_process_was(
    database_url: str, tmp_path: Path, web: Web, eventually: Eventually
) -> None:
    content = os.urandom(100 * MIB)
    kills, page = 3, web.publish("/big.img", content)
    operation_id = ""
    for number in range(kills):
        page.hold_at, page.released = (number + 1) * 25 * MIB, asyncio.Event()
        async with started(database_url, tmp_path) as service:
            operation_id = operation_id or (await begun(service, web.url("/big.img")))["id"]
            before = max(0, (number + 1) * 25 - 20) * MIB
            await eventually(lambda before=before: offset(database_url) >= before, 30)
            assert used(database_url) == len(content)
            await killed(service, database_url)
            page.released.set()
        await eventually(lambda: page.under_way == 0)
    page.hold_at = None
    async with started(database_url, tmp_path) as service:
        end = await ended(service, operation_id)
        assert end["state"] == "succeeded", end
    ((digest, size),) = rows(database_url, "SELECT sha256, size_bytes FROM images WHERE status = 'active'")
    assert (digest, size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert used(database_url) == len(content)
    assert len(page.requests) == kills + 1
    starts = [int(headers["range"][len("bytes=") : -1]) for headers in page.requests[1:]]
    assert starts == sorted(starts)
    assert all(start >= (number * 25 + 25 - 20) * MIB for number, start in enumerate(starts))
    assert len(files(tmp_path / "images")) == 1


async def test_a_packed_download_begins_anew_after_a_kill_and_nothing_is_mixed(
    database_url: str, tmp_path: Path, web: Web, eventually: Eventually
) -> None:
    content = os.urandom(40 * MIB) + bytes(40 * MIB)
    packed = gzip.compress(content, 1)
    page = web.publish("/big.img.gz", packed, hold_at=36 * MIB)
    async with started(database_url, tmp_path) as service:
        operation_id = (await begun(service, web.url("/big.img.gz")))["id"]
        await eventually(lambda: offset(database_url) >= 16 * MIB, 30)
        await killed(service, database_url)
        page.released.set()
    page.hold_at = None
    async with started(database_url, tmp_path) as service:
        assert (await ended(service, operation_id))["state"] == "succeeded"
    ((digest, told),) = rows(database_url, "SELECT sha256, provenance FROM images WHERE status = 'active'")
    assert digest == hashlib.sha256(content).hexdigest()
    assert told["downloaded_sha256"] == hashlib.sha256(packed).hexdigest()
    assert [headers.get("range") for headers in page.requests] == [None, None]


async def test_a_process_that_is_asked_to_end_lets_go_at_once_and_another_goes_on(
    database_url: str, tmp_path: Path, web: Web, eventually: Eventually
) -> None:
    content = os.urandom(60 * MIB)
    page = web.publish("/big.img", content, hold_at=30 * MIB)
    async with started(database_url, tmp_path) as service:
        operation_id = (await begun(service, web.url("/big.img")))["id"]
        await eventually(lambda: offset(database_url) >= 16 * MIB, 30)
        service.process.send_signal(signal.SIGTERM)
        asked_at = time.monotonic()
        await asyncio.wait_for(service.process.wait(), 15)
        assert time.monotonic() - asked_at < 12
        page.released.set()
    assert offset(database_url) > 24 * MIB  # it counted what it had
    page.hold_at = None
    async with started(database_url, tmp_path) as service:
        assert (await ended(service, operation_id))["state"] == "succeeded"
    assert rows(database_url, "SELECT sha256 FROM images") == [(hashlib.sha256(content).hexdigest(),)]


@pytest.mark.long
async def test_imports_take_little_memory_however_large_and_however_many(
    database_url: str, tmp_path: Path, web: Web
) -> None:
    web.publish("/big.img", os.urandom(256 * MIB))
    web.publish("/big.img.gz", gzip.compress(os.urandom(64 * MIB) + bytes(192 * MIB), 1))
    web.publish("/one.img", os.urandom(32 * MIB))
    web.publish("/one.img.gz", gzip.compress(os.urandom(16 * MIB) + bytes(16 * MIB), 1))
    grown = {}
    async with started(database_url, tmp_path) as service:
        await ended(service, (await begun(service, web.url("/one.img.gz")))["id"])  # imports what is imported late
        for path, count in (("/big.img", 1), ("/big.img.gz", 1), ("/one.img", 20), ("/one.img.gz", 20)):
            before, begun_at = service.memory_bytes("VmRSS"), time.monotonic()
            service.reset_peak()
            for one in [await begun(service, web.url(path)) for _ in range(count)]:
                end = await ended(service, one["id"])
                assert end["state"] == "succeeded", end
            grown[path] = (service.memory_bytes("VmHWM") - before) // MIB
            print(f"{count} x {path}: {time.monotonic() - begun_at:.1f} s, {grown[path]} MiB")  # noqa: T201 - to be reported
    assert max(grown["/big.img"], grown["/big.img.gz"]) < 32, grown
    assert max(grown.values()) < 128, grown  # eight at a time
