"""The older picture API's client through the gateway: its six documented calls by curl, but for host and key."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient

from libs.common.ids import uuid7
from tests.integration.fetcher.pictures import PictureServer

from .conftest import Account, RunningSuite

_JSON = ("-H", "Content-Type: application/json", "-d")


@pytest.fixture
def pictures(suite: RunningSuite) -> Iterator[PictureServer]:
    server = PictureServer(suite.host)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def shop(suite: RunningSuite, pictures: PictureServer) -> Iterator[str]:
    """A database with a collection `products` of ten documents, years 2015 to 2024."""
    name = f"shop_{uuid7().hex}"
    connection: MongoClient[dict[str, Any]] = MongoClient(suite.mongo_uri)
    with connection:
        connection[name]["products"].insert_many(
            [{"_id": n, "year": 2015 + n, "image_url": f"{pictures.url}/ok/{n}.jpg"} for n in range(10)]
        )
        yield name
        connection.drop_database(name)


def curl(url: str, key: str, *arguments: str) -> tuple[int, str]:
    """The status and body that curl gets."""
    program = shutil.which("curl")
    if program is None:
        pytest.fail("curl is missing: apt-get install curl")
    command = [program, "-s", "--noproxy", "*", "-w", "\n%{http_code}", "-H", f"X-API-Key: {key}", *arguments, url]
    body, _, status = subprocess.run(command, check=True, capture_output=True, text=True).stdout.rpartition("\n")
    return int(status), body


def test_the_six_documented_calls_of_the_older_picture_api_work(
    suite: RunningSuite, client: Account, shop: str, within: Callable[..., float]
) -> None:
    made = client.http.post("/api/v1/api-keys", json={"name": "older picture client", "scopes": ["fetch"]})
    key = made.json()["key"]
    api = f"{suite.url}/api/v1"

    def start(path: str, *arguments: str) -> str:
        status, body = curl(f"{api}/download/{path}", key, "-X", "POST", *arguments)
        assert status == 202, body
        document = json.loads(body)
        assert document["status"] == "pending"
        job_id: str = document["job_id"]
        return job_id

    def completed(job_id: str) -> int:
        status, body = curl(f"{api}/jobs/{job_id}", key)
        assert status == 200, body
        job = json.loads(body)
        return int(job["items"]["completed"]) if job["status"] == "completed" else 0

    batch = {"database": shop, "collection": "products", "filter": {"year": {"$gte": 2020}}, "limit": 3}
    whole = start(f"collection/{shop}/products")
    one = start(f"document/{shop}/products/4", *_JSON, json.dumps({"search_field": "image_url"}))
    some = start("batch", *_JSON, json.dumps(batch))
    for job_id, count in ((whole, 10), (one, 1), (some, 3)):
        within(lambda job_id=job_id, count=count: completed(job_id) == count, 30)

    status, body = curl(f"{api}/jobs?status=completed", key)
    assert status == 200
    assert {job["job_id"] for job in json.loads(body)["items"]} == {whole, one, some}
    status, body = curl(f"{api}/jobs?status=running", key)
    assert (status, json.loads(body)["items"]) == (200, [])
    status, body = curl(f"{api}/health", key)
    assert (status, json.loads(body)["status"]) == (200, "ok")
    status, body = curl(f"{api}/metrics", key)
    assert status == 200
    assert 'telar_fetch_attempts_total{outcome="completed"' in body
    original = suite.data_dir / "fetcher" / shop / "products" / "4-image_url" / "original" / "img_001.jpg"
    assert original.is_file()
    assert (original.parents[1] / "processed").is_dir()
    assert json.loads((original.parents[1] / "metadata.json").read_bytes())["pictures"][0]["status"] == "completed"
    assert curl(f"{api}/jobs", "not-a-key")[0] == 401
