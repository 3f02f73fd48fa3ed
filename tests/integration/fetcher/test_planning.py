"""What a job may read, what it says of what is not there, and how it waits for a MongoDB that is away."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from bson import ObjectId
from motor.motor_asyncio import AsyncIOMotorClient

from libs.common.ids import uuid7
from libs.common.testing.ports import free_port
from services.fetcher.adapters.source import MongoSource
from services.fetcher.adapters.storage import FolderStore
from services.fetcher.domain.jobs import JobKind
from services.fetcher.errors import DocumentIdRefused, DocumentNotFound, JobStoreUnavailable, SourceNotFound
from services.fetcher.models import Item, Job
from services.fetcher.operations import JobLease, Planner
from services.fetcher.repository import MongoItems, MongoJobs, MongoStore
from services.fetcher.settings import FetcherSettings
from tests.integration.fetcher import mongo_servers
from tests.integration.fetcher.conftest import OWNER, Eventually, Fetcher, RunFetcher, account_event
from tests.integration.fetcher.pictures import PictureServer


async def test_sources_that_are_not_there_are_told_from_ids_that_cannot_be(mongo_uri: str) -> None:
    client: Any = AsyncIOMotorClient(mongo_uri, tz_aware=True)
    name = f"source_{uuid7().hex}"
    source = MongoSource(mongo_uri, max_time_ms=5_000)
    try:
        await client[name]["shop"].insert_one({"_id": ObjectId(), "image": "x"})
        await client[name]["numbered"].insert_one({"_id": 7, "image": "x"})
        await source.check(name, "shop")
        for database, collection in ((name, "nothing"), ("nowhere", "shop")):
            with pytest.raises(SourceNotFound):
                await source.check(database, collection)
        with pytest.raises(DocumentIdRefused) as refused:
            await source.document_query(name, "shop", "507f1f77bcf86cd79943901")
        assert refused.value.errors[0].pointer == "/document_id"
        with pytest.raises(DocumentNotFound):
            await source.document_query(name, "shop", str(ObjectId()))
        with pytest.raises(DocumentNotFound):
            await source.document_query(name, "numbered", "seven")
        query = await source.document_query(name, "numbered", "7")
        assert query["_id"] in (7, "7")  # some servers find a number by its text
    finally:
        await client.drop_database(name)
        client.close()
        source.close()


async def test_a_wrong_source_is_refused_before_a_job_is_made(fetcher: Fetcher, source: Any) -> None:
    await source["shop"].insert_one({"image": "http://192.0.2.1/x.jpg"})
    refused = [
        (f"collection/{source.name}/nothing", 404, "source-not-found"),
        ("collection/nowhere/shop", 404, "source-not-found"),
        (f"document/{source.name}/shop/not-an-object-id", 422, "document-id-refused"),
        (f"document/{source.name}/shop/{ObjectId()}", 404, "source-document-not-found"),
    ]
    for path, status, slug in refused:
        answer = await fetcher.call("POST", f"/download/{path}")
        assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}"), answer.text
    assert (await fetcher.call("GET", "/jobs")).json()["items"] == []


async def test_only_the_listed_databases_are_read(
    run_fetcher: RunFetcher, settings: FetcherSettings, source: Any
) -> None:
    await source["shop"].insert_one({"name": "x"})
    narrow = settings.model_copy(update={"source_databases": ("archive",)})
    async with run_fetcher(narrow) as fetcher:
        answer = await fetcher.call("POST", f"/download/collection/{source.name}/shop")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/database")


def test_the_source_uris_own_database_is_the_default(settings: FetcherSettings) -> None:
    def readable(uri: str | None, *databases: str) -> frozenset[str] | None:
        given = {"source_uri": uri, "source_databases": databases}
        return settings.model_copy(update=given).readable_databases

    assert readable("mongodb://u:p@db:27017/shop?authSource=admin") == {"shop"}
    assert readable("mongodb://u:p@db:27017/admin") is None
    assert readable(None) is None
    assert readable("mongodb://db/shop", "a", "b") == {"a", "b"}


async def test_a_job_goes_on_by_itself_when_the_job_store_is_back(
    run_fetcher: RunFetcher, settings: FetcherSettings, pictures: PictureServer, tmp_path: Path, eventually: Eventually
) -> None:
    port = free_port()
    pictures.delay_s = 0.02
    own = settings.model_copy(update={"mongo_uri": f"mongodb://127.0.0.1:{port}", "mongo_timeout_s": 0.3})
    with mongo_servers.nx_27017(tmp_path / "mongo", port=port) as uri:
        client: Any = AsyncIOMotorClient(uri)
        await client["source"]["shop"].insert_many([{"image": f"{pictures.url}/ok/{n}.jpg"} for n in range(150)])
        client.close()
        running = run_fetcher(own)
        fetcher = await running.__aenter__()
        job_id = (await fetcher.call("POST", "/download/collection/source/shop")).json()["job_id"]
        await eventually(lambda: len(pictures.hits) > 20)
    try:
        answer = await fetcher.call("POST", "/download/collection/source/shop")
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert (await fetcher.call("GET", f"/jobs/{job_id}")).status_code == 503
        with mongo_servers.nx_27017(tmp_path / "mongo", port=port):
            job = await fetcher.ended(job_id, deadline_s=60)
            assert (job["status"], job["items"]["completed"]) == ("completed", 150)
            await running.__aexit__(None, None, None)
    finally:
        await fetcher.http.aclose()


async def test_a_plan_waits_for_a_source_that_is_away_and_says_so(
    run_fetcher: RunFetcher, settings: FetcherSettings, pictures: PictureServer, tmp_path: Path, eventually: Eventually
) -> None:
    port = free_port()
    own = settings.model_copy(update={"source_uri": f"mongodb://127.0.0.1:{port}", "mongo_timeout_s": 0.3})
    async with run_fetcher(own) as fetcher:
        with mongo_servers.nx_27017(tmp_path / "mongo", port=port) as uri:
            client: Any = AsyncIOMotorClient(uri)
            await client["source"]["shop"].insert_one({"image": f"{pictures.url}/ok/1.jpg"})
            job_id = (await fetcher.call("POST", "/download/collection/source/shop")).json()["job_id"]
            await fetcher.ended(job_id)
            await client["source"]["shop"].insert_one({"image": f"{pictures.url}/ok/2.jpg"})
            client.close()
        answer = await fetcher.call("POST", "/download/collection/source/shop")
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/source-unavailable")
        store: Any = AsyncIOMotorClient(settings.mongo_uri)
        again = {"state": "running", "planned": False, "planner": None, "planner_until_ms": 0, "finished_at_ms": None}
        await store[settings.mongo_database]["jobs"].update_one({"_id": job_id}, {"$set": again})
        store.close()

        async def waits() -> bool:
            error = (await fetcher.job(job_id))["error"]
            return error is not None and error["slug"] == "source-unavailable"

        await eventually(waits)
        with mongo_servers.nx_27017(tmp_path / "mongo", port=port):
            job = await fetcher.ended(job_id)
            assert (job["status"], job["items"]["completed"], job["error"]) == ("completed", 2, None)


class Documents:
    """Stands for a source whose documents the test holds."""

    def __init__(self, count: int) -> None:
        self.documents = [{"_id": number, "image": f"http://a.example/{number}.jpg"} for number in range(count)]

    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
        for document in self.documents:
            yield document


class CutOff(MongoItems):
    """A job store that goes away with the second batch, once; remembers what was added."""

    def __init__(self, store: MongoStore) -> None:
        super().__init__(store)
        self.added: list[list[str]] = []

    async def add(self, items: Sequence[Item]) -> None:
        if not items:
            return
        self.added.append([item.document_id for item in items])
        if len(self.added) == 2:
            raise JobStoreUnavailable
        await super().add(items)


@pytest.mark.parametrize("gone", [False, True], ids=["still there", "deleted meanwhile"])
async def test_a_plan_that_was_cut_goes_on_behind_its_last_batch(
    store: MongoStore, tmp_path: Path, *, gone: bool
) -> None:
    jobs, items, documents = MongoJobs(store), CutOff(store), Documents(1_200)
    made = Job(
        id="job-001",
        owner_id=OWNER,
        kind=JobKind.COLLECTION,
        database="shop",
        collection="products",
        search_field="image",
        created_at_ms=1,
        updated_at_ms=1,
    )
    await jobs.add(made, account_event(OWNER))
    source, folder = cast("MongoSource", documents), FolderStore(tmp_path)
    lease = JobLease(jobs, holder="a", lease_ms=60_000, now_ms=store.now_ms)
    looks: list[tuple[Job, set[str]]] = []
    planner = Planner(lease, items, source, folder, on_items=lambda *look: looks.append(look))
    with pytest.raises(JobStoreUnavailable):
        await planner.plan(made)
    cut = await jobs.get(made.id)
    assert cut is not None
    if gone:
        del documents.documents[63]  # the last one whose item is written
    assert await planner.plan(cut)
    assert items.added[2][0] == ("0" if gone else "64")
    planned = await jobs.get(made.id)
    assert planned is not None
    told = [(look.id, look.conditional, domains) for look, domains in looks]
    assert told == [(made.id, False, {"a.example"})] * (len(items.added) - 1)
    assert (planned.planned, planned.documents) == (True, len(documents.documents))
    assert (await items.counts(made.id))[0]["pending"] == 1_200
