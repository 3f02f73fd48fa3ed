"""Imports and conversions whose blobs lie in S3: nothing is a file of this machine but the converter's own."""

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contract.images.converting import MIB, a_disk, content, converted, is_same_disk, needs_qemu_img, work_files
from tests.contract.images.harness import Service, running
from tests.contract.images.importing import imported
from tests.contract.images.s3 import Bucket, new_bucket, s3_server
from tests.contract.images.web import Web


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_server() as endpoint:
        yield new_bucket(endpoint)


@pytest.fixture(scope="module")
async def service(
    database_url: str, tmp_path_factory: pytest.TempPathFactory, bucket: Bucket
) -> AsyncIterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TELAR_OUTBOUND_ALLOW_NETWORKS", "127.0.0.0/8")
        folder = tmp_path_factory.mktemp("images")
        async with running(database_url, folder, **bucket.settings, import_attempts=3) as service:
            service.http.timeout = 60
            yield service


async def test_an_import_that_broke_off_goes_on_in_the_bucket(service: Service, web: Web, bucket: Bucket) -> None:
    disk = os.urandom(40 * MIB)
    page = web.publish("/d.img", disk, cuts=[25 * MIB])
    user = await service.new_user()
    image = await imported(service, user, web.url("/d.img"))
    assert image["sha256"] == hashlib.sha256(disk).hexdigest()
    assert service.used_bytes(user) == len(disk)
    assert page.requests[1]["range"].startswith("bytes=")
    keys = bucket.keys()
    assert [key for key in keys if key.startswith("blobs/") and image["id"] in key]
    assert bucket.multiparts() == []


@needs_qemu_img
async def test_an_image_in_the_bucket_is_converted_both_ways(
    service: Service, web: Web, tmp_path: Path, bucket: Bucket
) -> None:
    user, disk = await service.new_user(), a_disk()
    web.publish("/disk.img", disk)
    raw = await imported(service, user, web.url("/disk.img"))
    small = await converted(service, user, raw["id"], "qcow2", compress=True)
    assert is_same_disk(tmp_path, disk, await content(service, user, small["id"]), "qcow2")
    again = await converted(service, user, small["id"], "raw")
    assert again["sha256"] == raw["sha256"]
    assert service.used_bytes(user) == 2 * len(disk) + small["size_bytes"]
    assert work_files(service) == []
    assert bucket.multiparts() == []
