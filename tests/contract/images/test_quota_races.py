"""Two hundred uploads of one user at once: what is reserved and kept never exceeds the quota by a byte."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Self

import httpx
import psycopg
import pytest

from tests.contract.images.harness import Service
from tests.contract.images.tus_client import Tus
from tests.corpora.images import disks

UPLOADS = 200
SUMS = """
SELECT coalesce((SELECT (used->>'image_bytes')::bigint FROM quota_accounts WHERE owner_id = %(owner)s), 0),
       (SELECT coalesce(sum(size_bytes), 0) FROM images WHERE owner_id = %(owner)s AND status = 'active')
     + (SELECT coalesce(sum(reserved_bytes), 0) FROM uploads WHERE owner_id = %(owner)s)
"""
FORM = {"content-type": "multipart/form-data; boundary=edge"}


class Sampler:
    """Reads over and over, in a thread of its own, what a user has reserved and what the records say of it."""

    def __init__(self, database_url: str, owner: str) -> None:
        self._url = database_url
        self._owner = owner
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.samples: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._done.is_set():
                row = connection.execute(SUMS, {"owner": self._owner}).fetchone()
                assert row is not None
                self.samples.append((int(row[0]), int(row[1])))


def form(content: bytes, *, filename: str = "a.img", sha256: str = "", end: bytes = b"\r\n--edge--\r\n") -> bytes:
    fields = {"name": "n", "os_type": "o", **({"sha256": sha256} if sha256 else {})}
    parts = [f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields]
    parts.append(f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n')
    return "".join(parts).encode() + content + end


async def send(service: Service, user: str, number: int) -> httpx.Response:
    """One of the uploads: of ten, six are good, one hides its length, and three must fail on different grounds."""
    content = disks.patched(disks.raw_disk(100 * disks.KIB + 511 * number), 4096, user.encode())
    bodies: dict[int, bytes] = {
        0: form(disks.padded(disks.qcow2(backing=b"/etc/passwd"), len(content)), filename="a.qcow2"),
        1: form(content, sha256="0" * 64),
        2: form(content, end=b""),
    }
    body = bodies.get(number % 10, form(content))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 8192):
            yield body[start : start + 8192]
            await asyncio.sleep(0)  # so that all of them are under way at once

    return await service.http.post(
        "/api/v1/images/upload",
        headers={**service.as_user(user), **FORM, **({"content-length": str(len(body))} if number % 10 != 3 else {})},
        content=pieces(),
    )


async def insisting(call: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """On a machine that is busy elsewhere some wait for a database connection in vain: told to come again, they do."""
    while (answer := await call()).status_code == 503:
        assert "retry-after" in answer.headers
    return answer


@pytest.mark.parametrize("room_for", [20, 60])
async def test_two_hundred_uploads_at_once_never_exceed_the_quota(service: Service, room_for: int) -> None:
    limit = room_for * 150 * disks.KIB + 1
    user, files = await service.new_user(image_bytes=limit), len(service.files())
    with Sampler(service.settings.database_url, user) as sampler:
        answers = await asyncio.gather(*(insisting(partial(send, service, user, n)) for n in range(UPLOADS)))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {201, 400, 409, 422}, statuses
    accepted: list[dict[str, Any]] = [answer.json()["image"] for answer in answers if answer.status_code == 201]
    assert len(accepted) >= room_for // 4
    assert statuses[409] > 0, "the quota was never in the way"
    for reserved, recorded in sampler.samples:
        assert reserved <= limit
        assert reserved == recorded
    assert max(reserved for reserved, _ in sampler.samples) > limit // 2
    assert service.used_bytes(user) == sum(image["size_bytes"] for image in accepted)
    assert service.rows("SELECT count(*) FROM uploads WHERE owner_id = %s", user) == [(0,)]
    assert len(service.files()) == files + len({image["sha256"] for image in accepted})


async def test_two_hundred_resumable_uploads_begun_at_once_never_exceed_the_quota(service: Service) -> None:
    limit = 50 * disks.MIB + 1
    user = await service.new_user(image_bytes=limit)
    client = Tus(service, user)
    lengths = [disks.MIB + 4099 * number for number in range(UPLOADS)]
    with Sampler(service.settings.database_url, user) as sampler:
        answers = await asyncio.gather(*(insisting(partial(client.create, length)) for length in lengths))
        assert {answer.status_code for answer in answers} <= {201, 409}
        begun = {answer.headers["location"]: n for answer, n in zip(answers, lengths, strict=True) if answer.is_success}
        assert limit - max(lengths) < sum(begun.values()) <= limit
        assert service.used_bytes(user) == sum(begun.values())
        await asyncio.gather(*(client.delete(path) for path in begun))
    for reserved, recorded in sampler.samples:
        assert reserved <= limit
        assert reserved == recorded
    assert service.used_bytes(user) == 0


async def test_a_file_of_unknown_length_may_fill_the_quota_to_the_byte(service: Service) -> None:
    content = disks.raw_disk(7 * disks.MIB)
    user = await service.new_user(image_bytes=len(content))

    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        yield body

    headers = {**service.as_user(user), **FORM}
    answer = await service.http.post("/api/v1/images/upload", headers=headers, content=pieces(form(content)))
    assert answer.status_code == 201, answer.text
    assert service.used_bytes(user) == len(content)
    one_more = form(disks.raw_disk(512))
    answer = await service.http.post("/api/v1/images/upload", headers=headers, content=pieces(one_more))
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/quota-exceeded")
    assert "0 left" in answer.json()["detail"]
    assert service.used_bytes(user) == len(content)
