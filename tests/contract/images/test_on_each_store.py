"""The service on each blob store: what goes in comes out, is shared, goes with its last image, survives restarts."""

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from libs.common.ids import uuid7
from services.images.adapters.blob_stores import blob_store
from tests.contract.images.harness import Service, running
from tests.contract.images.s3 import Bucket, new_bucket, s3_server
from tests.corpora.images import disks

MIB = 1 << 20
CONTENT = disks.mbr() + hashlib.shake_256(b"telar").digest(20 * MIB - 512)
Eventually = Callable[..., Awaitable[None]]


@dataclass
class Site:
    """Where a service runs, again and again, and keeps its files."""

    database_url: str
    folder: Path
    bucket: Bucket | None

    def running(self, **options: Any) -> contextlib.AbstractAsyncContextManager[Service]:
        chosen = {} if self.bucket is None else self.bucket.settings
        return running(self.database_url, self.folder, **{"sweep_every_s": 3600, **chosen, **options})

    def kept(self) -> list[str]:
        """Everything in the store, begun or published."""
        if self.bucket is not None:
            return self.bucket.keys() + self.bucket.multiparts()
        return [str(path) for path in (self.folder / "images").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["folder", "s3"])
def site(request: pytest.FixtureRequest, new_database_url: str, tmp_path: Path) -> Site:
    bucket = new_bucket(request.getfixturevalue("endpoint")) if request.param == "s3" else None
    return Site(new_database_url, tmp_path, bucket)


@pytest.fixture
async def service(site: Site) -> AsyncIterator[Service]:
    async with site.running() as service:
        yield service


async def download(service: Service, user: str, image_id: str, **headers: str) -> httpx.Response:
    url = f"/api/v1/images/{image_id}/download"
    return await service.http.get(url, headers={**service.as_user(user), **headers})


async def test_an_image_goes_in_and_comes_out_whole_and_in_part(service: Service) -> None:
    owner = await service.new_user()
    image = await service.image(owner, CONTENT, filename="a.img")
    assert image["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert (await download(service, owner, image["id"])).content == CONTENT
    for start, end in ((0, 0), (5 * MIB - 3, 9 * MIB + 7), (len(CONTENT) - 1, len(CONTENT) - 1)):
        part = await download(service, owner, image["id"], range=f"bytes={start}-{end}")
        assert (part.status_code, part.content) == (206, CONTENT[start : end + 1])
    assert (await service.http.get("/readyz")).json()["checks"]["blobs"] == "ok"


async def test_two_owners_share_one_file_that_goes_with_the_last(site: Site, service: Service) -> None:
    one, two = await service.new_user(), await service.new_user()
    images = [(user, await service.image(user, CONTENT, filename="a.img")) for user in (one, two)]
    assert len(site.kept()) == 1
    for left, (user, image) in zip((1, 0), images, strict=True):
        assert (await download(service, user, image["id"])).content == CONTENT
        deleted = await service.http.delete(f"/api/v1/images/{image['id']}", headers=service.as_user(user))
        assert deleted.status_code == 204
        assert len(site.kept()) == left


async def test_a_refused_file_leaves_nothing(site: Site, service: Service) -> None:
    owner = await service.new_user()
    assert (await service.upload(owner, CONTENT, filename="a.qcow2")).status_code == 422
    wrong = await service.upload(owner, CONTENT, filename="a.img", sha256="0" * 64)
    assert wrong.status_code == 422
    assert site.kept() == []
    assert service.used_bytes(owner) == 0


async def test_what_killed_processes_left_is_swept(site: Site, eventually: Eventually) -> None:
    async with site.running() as service:
        owner = await service.new_user()
        await service.image(owner, CONTENT, filename="a.img")
        store = blob_store(service.settings)
        begun = await store.stage(uuid7())
        await begun.write(CONTENT)
        staged = await store.stage(uuid7())
        await staged.write(CONTENT)
        await staged.publish("ab" * 32)
        resumable = await store.resume(uuid7(), 0)
        await resumable.write(CONTENT)
        await resumable.sync()
        await resumable.close()
    assert len(site.kept()) >= 4
    async with site.running(sweep_every_s=0.1):
        await eventually(lambda: len(site.kept()) == 1)
    await begun.discard()


async def test_a_resumable_upload_goes_on_after_a_restart(site: Site, eventually: Eventually) -> None:
    filename = base64.b64encode(b"a.img").decode()
    os_type = base64.b64encode(b"Debian").decode()
    tus = {"tus-resumable": "1.0.0"}
    async with site.running() as service:
        owner = await service.new_user()
        told = {
            "upload-length": str(len(CONTENT)),
            "upload-metadata": f"filename {filename},name {os_type},os_type {os_type}",
        }
        begun = await service.http.post("/api/v1/uploads", headers={**service.as_user(owner), **tus, **told})
        assert begun.status_code == 201, begun.text
    url = urlsplit(begun.headers["location"]).path
    for start, end in ((0, 7 * MIB), (7 * MIB, 7 * MIB + 5), (7 * MIB + 5, len(CONTENT))):
        async with site.running() as service:
            at = await service.http.head(url, headers={**service.as_user(owner), **tus})
            assert at.headers["upload-offset"] == str(start)
            told = {"upload-offset": str(start), "content-type": "application/offset+octet-stream"}
            headers = {**service.as_user(owner), **tus, **told}
            sent = await service.http.patch(url, content=CONTENT[start:end], headers=headers)
            assert (sent.status_code, sent.headers["upload-offset"]) == (204, str(end)), sent.text
            if end == len(CONTENT):
                image_url = f"/api/v1/images/{url.rpartition('/')[2]}"

                async def is_active() -> bool:
                    shown = await service.http.get(image_url, headers=service.as_user(owner))  # noqa: B023 - of this very turn
                    return bool(shown.json()["status"] == "active")

                await eventually(is_active, deadline_s=30)
                assert (await download(service, owner, url.rpartition("/")[2])).content == CONTENT
    assert len(site.kept()) == 1


async def test_a_link_leads_to_the_file(site: Site, service: Service) -> None:
    owner = await service.new_user()
    image = await service.image(owner, CONTENT, filename="a.img", name="Zürich")
    url = f"/api/v1/images/{image['id']}/download?redirect=true"
    answer = await service.http.get(url, headers=service.as_user(owner))
    assert answer.status_code == 307
    link = answer.headers["location"]
    if site.bucket is None:
        file = await service.http.get(link)
    else:  # to the store itself
        assert link.startswith(f"{site.bucket.account.endpoint}/{site.bucket.account.bucket}/")
        async with httpx.AsyncClient() as http:
            file = await http.get(link)
    assert file.content == CONTENT
    assert file.headers["content-disposition"] == (
        "attachment; filename=\"Zurich.img\"; filename*=UTF-8''Z%C3%BCrich.img"
    )
    assert file.headers["content-type"] == "application/octet-stream"
    looked = await service.http.head(url, headers=service.as_user(owner))
    assert looked.headers["location"].startswith("/api/v1/image-files/")  # S3 refuses a HEAD by what is signed for GET
    assert (await service.http.head(looked.headers["location"])).headers["content-length"] == str(len(CONTENT))


async def test_a_bucket_that_is_not_there_stops_the_start(endpoint: str, new_database_url: str, tmp_path: Path) -> None:
    bucket = new_bucket(endpoint)
    await asyncio.to_thread(bucket.client.delete_bucket, Bucket=bucket.account.bucket)
    with pytest.raises(Exception, match="does not answer"):
        async with Site(new_database_url, tmp_path, bucket).running():
            pytest.fail("it started")
