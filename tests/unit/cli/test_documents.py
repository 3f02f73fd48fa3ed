"""The job store as a file: what is saved from one server is the same in another."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

from cli import documents
from tests.integration.fetcher import mongo_servers

JOBS = [{"_id": f"job-{n}", "state": "running", "counts": {"done": n, "failed": [1, {"x": None}]}} for n in range(1201)]
ITEMS = [{"_id": ObjectId(), "url": "https://example.org/ü", "size": 2**40, "raw": b"\x00\xff"}]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mongo_servers.nx_27017(tmp_path_factory.mktemp("nx")) as found:
        yield found


def test_what_is_saved_is_loaded_again_and_nothing_is_loaded_over_what_is_there(uri: str) -> None:
    file = io.BytesIO()
    connection: MongoClient[dict[str, Any]] = MongoClient(uri)
    with connection as client:
        client["one"]["jobs"].insert_many(JOBS)
        client["one"]["items"].insert_many(ITEMS)
        assert documents.save(uri, "one", file) == len(JOBS) + len(ITEMS)
        file.seek(0)
        assert documents.load(uri, "two", file) == len(JOBS) + len(ITEMS)
        assert sorted(client["two"]["jobs"].find(), key=lambda job: str(job["_id"])) == sorted(
            JOBS, key=lambda job: str(job["_id"])
        )
        assert list(client["two"]["items"].find()) == ITEMS
    file.seek(0)
    with pytest.raises(FileExistsError, match="is not empty"):
        documents.load(uri, "two", file)


def test_an_empty_store_is_an_empty_file(uri: str) -> None:
    file = io.BytesIO()
    assert documents.save(uri, "nothing", file) == 0
    assert file.getvalue() == b""
    assert documents.load(uri, "nothing", file) == 0


def test_a_file_that_was_cut_short_is_refused(uri: str, tmp_path: Path) -> None:
    whole = io.BytesIO()
    connection: MongoClient[dict[str, Any]] = MongoClient(uri)
    with connection as client:
        client["three"]["items"].insert_many(ITEMS)
    documents.save(uri, "three", whole)
    path = tmp_path / "cut"
    path.write_bytes(whole.getvalue()[:-3])
    with path.open("rb") as file, pytest.raises(OSError, match="cut off"):
        documents.load(uri, "four", file)
