"""tus uploads whose bytes are staged in S3, which knows neither appending nor locks."""

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.images.harness import running
from tests.contract.images.s3 import Bucket, new_bucket, s3_server
from tests.contract.images.tus_client import MIB, Tus
from tests.corpora.images import disks

Eventually = Callable[..., Awaitable[None]]
DISK = disks.raw_disk(3 * MIB)[: -len(b"the end")] + b"the end"
HALF = len(DISK) // 2


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_server() as endpoint:
        yield new_bucket(endpoint)


async def test_an_upload_goes_on_where_its_client_left(
    new_database_url: str, tmp_path: Path, bucket: Bucket, eventually: Eventually
) -> None:
    async with running(new_database_url, tmp_path, **bucket.settings) as service:
        tus = Tus(service, await service.new_user())
        path = await tus.begin(len(DISK))
        leaving = tus.open(path, 0)
        leaving.send(DISK[:HALF])
        leaving.leave()
        await leaving.status()
        assert await tus.offset(path) == HALF
        assert (await tus.patch(path, HALF, DISK[HALF:])).status_code == 204
        await eventually(lambda: tus.is_now(path, "active"))
        assert (await tus.image(path))["sha256"] == hashlib.sha256(DISK).hexdigest()
        terminated = await tus.begin(len(DISK))
        await tus.patch(terminated, 0, DISK[:HALF])
        assert (await tus.delete(terminated)).status_code == 204
        kept = bucket.keys()
        assert not [key for key in kept if key.startswith("staging/")]


async def test_the_bytes_of_a_writer_that_another_process_has_overtaken_do_not_count(
    new_database_url: str, tmp_path: Path, bucket: Bucket, eventually: Eventually
) -> None:
    async with (
        running(new_database_url, tmp_path, **bucket.settings) as service,
        running(new_database_url, tmp_path, **bucket.settings) as elsewhere,
    ):
        user = await service.new_user()
        tus, other = Tus(service, user), Tus(elsewhere, user)
        path = await tus.begin(len(DISK))
        overtaken = tus.open(path, 0)
        overtaken.send(b"x" * HALF)
        await eventually(lambda: tus.is_now(path, "uploading"))
        assert (await other.patch(path, 0, DISK[:HALF])).status_code == 204
        overtaken.leave()
        assert await overtaken.status() in (400, 409)
        assert await tus.offset(path) == HALF
        assert (await other.patch(path, HALF, DISK[HALF:])).status_code == 204
        await eventually(lambda: tus.is_now(path, "active"))
        assert (await tus.image(path))["sha256"] == hashlib.sha256(DISK).hexdigest()
