import asyncio
import base64
import contextlib
import hashlib
import time
from pathlib import Path

import pytest

from tests.contract.images.harness import Service, running
from tests.corpora.images import disks

CONTENT = disks.raw_disk(3 << 20)[:-4096] + bytes(range(256)) * 16


@pytest.fixture(scope="module")
async def owner(service: Service) -> str:
    return await service.new_user()


@pytest.fixture(scope="module")
async def url(service: Service, owner: str) -> str:
    image = await service.image(owner, CONTENT, filename="a.img", name='Zürich "cloud"/../ image')
    return f"/api/v1/images/{image['id']}"


async def test_a_download_gives_the_file_and_what_proves_it(service: Service, owner: str, url: str) -> None:
    answer = await service.http.get(f"{url}/download", headers=service.as_user(owner))
    assert answer.status_code == 200
    assert answer.content == CONTENT
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    sha256 = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    sha512 = base64.b64encode(hashlib.sha512(CONTENT).digest()).decode()
    assert answer.headers["content-digest"] == f"sha-256=:{sha256}:, sha-512=:{sha512}:"
    assert answer.headers["repr-digest"] == answer.headers["content-digest"]
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"Zurich _cloud_.._ image.img\"; filename*=UTF-8''Z%C3%BCrich%20_cloud_.._%20image.img"
    )


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        (f"bytes=0-{len(CONTENT) * 2}", 0, len(CONTENT)),
        (f"bytes={len(CONTENT) - 1}-", len(CONTENT) - 1, len(CONTENT)),
        ("bytes=-256", len(CONTENT) - 256, len(CONTENT)),
        (f"bytes=-{len(CONTENT) * 2}", 0, len(CONTENT)),
        ("bytes=1048500-2097300", 1_048_500, 2_097_301),
    ],
)
async def test_a_range_gives_exactly_its_bytes(
    service: Service, owner: str, url: str, asked: str, start: int, end: int
) -> None:
    headers = {**service.as_user(owner), "range": asked}
    answer = await service.http.get(f"{url}/download", headers=headers)
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
    assert "content-digest" not in answer.headers  # it would have to be the part's own (RFC 9530, 2)
    assert "repr-digest" in answer.headers


@pytest.mark.parametrize("asked", [f"bytes={len(CONTENT)}-", "bytes=999999999999-", "bytes=-0"])
async def test_a_range_beyond_the_file_is_a_416(service: Service, owner: str, url: str, asked: str) -> None:
    answer = await service.http.get(f"{url}/download", headers={**service.as_user(owner), "range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=" + ",".join(f"{n}-{n}" for n in range(100_000)),
        "bytes=" + "0-," * 100_000,
        "bytes=0-1,2-3",
        "bytes=5-2",
        "lines=1-2",
        "bytes=" + "9" * 100_000 + "-",
        "bytes=-",
        "bytes=a-b",
    ],
    ids=lambda asked: asked[:16],
)
async def test_many_ranges_or_nonsense_are_ignored_with_less_than_100_ms_of_work(
    service: Service, owner: str, url: str, asked: str
) -> None:
    headers = {**service.as_user(owner), "range": asked}
    started_s = time.thread_time()  # the loop's own work: the clock on the wall counts what else the machine does
    answer = await service.http.head(f"{url}/download", headers=headers)
    assert time.thread_time() - started_s < 0.1
    assert answer.status_code == 200
    assert answer.headers["content-length"] == str(len(CONTENT))


async def test_a_client_that_has_the_file_is_told_so(service: Service, owner: str, url: str) -> None:
    etag = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    for given in (etag, f'"other", W/{etag}', "*"):
        headers = {**service.as_user(owner), "if-none-match": given}
        answer = await service.http.get(f"{url}/download", headers=headers)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag


async def test_a_range_of_another_file_gives_the_whole(service: Service, owner: str, url: str) -> None:
    headers = {**service.as_user(owner), "range": "bytes=0-9"}
    stale = await service.http.get(f"{url}/download", headers={**headers, "if-range": '"other"'})
    assert (stale.status_code, len(stale.content)) == (200, len(CONTENT))
    fresh = await service.http.get(f"{url}/download", headers={**headers, "if-range": stale.headers["etag"]})
    assert (fresh.status_code, len(fresh.content)) == (206, 10)


async def test_what_begins_a_download_is_counted_and_nothing_else(service: Service) -> None:
    user = await service.new_user()
    image = await service.image(user, CONTENT, filename="a.img")
    path, headers = f"/api/v1/images/{image['id']}", service.as_user(user)
    for extra in ({}, {"range": "bytes=0-9"}, {"range": "bytes=10-"}, {"if-none-match": "*"}, {"range": "bytes=-0"}):
        await service.http.get(f"{path}/download", headers={**headers, **extra})
    await service.http.head(f"{path}/download", headers=headers)
    shown = (await service.http.get(path, headers=headers)).json()
    assert shown["downloads"] == 2
    assert shown["etag"] == image["etag"]


async def test_downloads_at_the_same_time_on_two_replicas_are_all_counted(
    new_database_url: str, tmp_path: Path
) -> None:
    async with running(new_database_url, tmp_path) as one, running(new_database_url, tmp_path) as other:
        user = await one.new_user()
        image = await one.image(user)
        path = f"/api/v1/images/{image['id']}"

        async def download(replica: Service, *, linked: bool) -> int:
            headers = replica.as_user(user)
            url = f"{path}/download?redirect={str(linked).lower()}"
            answer = await replica.http.get(url, headers=headers, follow_redirects=True)
            return answer.status_code

        calls = [download(replica, linked=number % 4 == 0) for number in range(20) for replica in (one, other)]
        assert set(await asyncio.gather(*calls)) == {200}
        for replica in (one, other):
            assert (await replica.http.get(path, headers=replica.as_user(user))).json()["downloads"] == 40


async def test_a_client_that_leaves_in_the_middle_leaves_no_file_open(service: Service, owner: str, url: str) -> None:
    """At the application's own edge: the transport takes no more."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": f"{url}/download",
        "raw_path": f"{url}/download".encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in service.as_user(owner).items()],
    }
    sent = []

    async def receive() -> dict[str, object]:
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: dict[str, object]) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            raise OSError("the connection is gone")

    before = _open_files()
    with contextlib.suppress(Exception):
        await service.app(scope, receive, send)  # type: ignore[arg-type]
    assert sent == ["http.response.start", "http.response.body"]
    assert not [path for path in _open_files() - before if "/blobs/" in path]


def _open_files() -> set[str]:
    """What this process has open; links that are gone meanwhile are not."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()))
    return found


@pytest.mark.parametrize("name", ["../../etc/passwd", ".", "CON:\\x", "😀", "a.img", "x" * 200])
async def test_a_file_name_is_safe_whatever_the_image_is_called(service: Service, name: str) -> None:
    user = await service.new_user()
    image = await service.image(user, CONTENT, filename="a.img", name=name)
    answer = await service.http.head(f"/api/v1/images/{image['id']}/download", headers=service.as_user(user))
    filename = answer.headers["content-disposition"].split('"')[1]
    assert filename.endswith(".img")
    assert not filename.startswith(("/", "\\", ".."))
    assert not set(filename) & set('/\\:"*?<>|')
    assert len(filename) < 200
