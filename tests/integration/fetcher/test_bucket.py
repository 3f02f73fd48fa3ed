"""A job whose pictures lie in a bucket."""

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from services.fetcher.settings import FetcherSettings
from tests.contract.images.s3 import PREFIX, Bucket, new_bucket, s3_server
from tests.integration.fetcher.conftest import Eventually, RunFetcher
from tests.integration.fetcher.pictures import PictureServer, picture


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with s3_server() as endpoint:
        yield new_bucket(endpoint)


async def test_pictures_come_go_and_leave_through_a_bucket_as_through_a_folder(
    run_fetcher: RunFetcher,
    settings: FetcherSettings,
    source: Any,
    pictures: PictureServer,
    bucket: Bucket,
    eventually: Eventually,
) -> None:
    storage = {name: value for name, value in bucket.settings.items() if name.startswith("s3_") and name != "s3_links"}
    in_bucket = settings.model_copy(update={**storage, "storage_url": f"s3://{bucket.account.bucket}/{PREFIX}"})
    await source["shop"].insert_many([{"_id": n, "image": f"{pictures.url}/etag/{n}.jpg"} for n in range(10)])
    folder = f"{source.name}/shop"
    async with run_fetcher(in_bucket) as fetcher:

        async def run() -> tuple[str, dict[str, Any]]:
            body = {"options": {"process": [{"kind": "thumbnail", "size": 16}]}}
            answer = await fetcher.call("POST", f"/download/collection/{folder}", json=body)
            job = await fetcher.ended(answer.json()["job_id"])
            assert job["items"]["completed"] == 10
            return job["job_id"], (await fetcher.items(job["job_id"]))[0]

        first_id, item = await run()
        answer = await fetcher.call("GET", f"/jobs/{first_id}/files/{item['path']}")
        assert answer.content == picture(seed=int(item["document_id"]) + 1000)
        assert (answer.headers["content-type"], answer.headers["content-length"]) == ("image/jpeg", str(item["bytes"]))
        assert f"{folder}/{item['document_id']}-image/processed/img_001-thumbnail-16.jpg" in set(bucket.keys())
        assert len(bucket.keys()) == 30
        archive = (await fetcher.call("GET", f"/jobs/{first_id}/export")).content
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            assert sorted(opened.namelist()) == sorted(bucket.keys())
        second_id, again = await run()
        assert (again["unchanged"], again["sha256"]) == (True, item["sha256"])
        await fetcher.call("DELETE", f"/jobs/{first_id}?files=true")
        await fetcher.call("DELETE", f"/jobs/{second_id}?files=true")
        await eventually(lambda: bucket.keys() == [], 20)
