"""MongoDB-compatible servers, a picture server, and a running fetcher for its integration tests."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from motor.motor_asyncio import AsyncIOMotorClient
from pydantic import SecretStr

from libs.common.bus import Bus, create_bus
from libs.common.events import Event
from libs.common.ids import uuid7
from libs.common.settings import CommonSettings
from libs.common.testing.identity import TestIssuer
from libs.common.testing.needs import missing
from services.fetcher.main import create_app
from services.fetcher.repository import MongoStore, indexes
from services.fetcher.settings import FetcherSettings
from tests.integration.fetcher import mongo_servers
from tests.integration.fetcher.pictures import PictureServer


@pytest.fixture(scope="session")
def nx_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The wire-compatible server on SQLite that embedded mode uses too."""
    with mongo_servers.nx_27017(tmp_path_factory.mktemp("nx")) as uri:
        yield uri


@pytest.fixture(scope="session")
def java_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """mongo-java-server, which emulates MongoDB closely, over H2."""
    if lacking := mongo_servers.missing_for_java():
        missing(f"mongo-java-server needs {lacking}; deploy/local/mongo-java-server.sh sets it up")
    with mongo_servers.mongo_java_server(tmp_path_factory.mktemp("mjs")) as uri:
        yield uri


@pytest.fixture(scope="session")
def real_uri() -> str:
    return os.environ["TELAR_TEST_MONGO_URI"]


ENGINES = {"nx-27017": "nx_uri", "mongo-java-server": "java_uri"}
if "TELAR_TEST_MONGO_URI" in os.environ:
    ENGINES["mongod"] = "real_uri"


@pytest.fixture(scope="session", params=list(ENGINES.values()), ids=list(ENGINES))
def mongo_uri(request: pytest.FixtureRequest) -> str:
    """Each engine at hand in turn."""
    uri: str = request.getfixturevalue(request.param)
    return uri


@pytest.fixture
async def store(mongo_uri: str) -> AsyncIterator[MongoStore]:
    """An empty job store on each engine."""
    name = f"telar_{uuid7().hex}"
    made = MongoStore(mongo_uri, name)
    try:
        await indexes.create(made.database)
        yield made
        await made.database.client.drop_database(name)
    finally:
        made.close()


@pytest.fixture
def pictures() -> Iterator[PictureServer]:
    server = PictureServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def source(nx_uri: str) -> AsyncIterator[Any]:
    """A source database of its own."""
    client: Any = AsyncIOMotorClient(nx_uri, tz_aware=True)
    name = f"source_{uuid7().hex}"
    yield client[name]
    await client.drop_database(name)
    client.close()


@pytest.fixture
def settings(nx_uri: str, tmp_path: Path) -> FetcherSettings:
    common = CommonSettings(
        data_dir=tmp_path,
        service_secret=SecretStr("for-tests-only-0123456789abcdef"),
        outbound_allow_networks=(ip_network("127.0.0.0/8"),),
    )
    return FetcherSettings(
        common=common,
        mongo_uri=nx_uri,
        mongo_database=f"jobs_{uuid7().hex}",
        retry_base_s=0.01,
        lease_s=5,
        max_pixels=4_000_000,
        max_frames=20,
        max_picture_bytes=5_000_000,
        download_deadline_s=5,
        max_attempts=3,
        max_unwritten=80,
    )


OWNER = "018f0000-0000-7000-8000-000000000001"
STRANGER = "018f0000-0000-7000-8000-000000000002"


def account_event(user_id: str, *, fetch_jobs: int = 3, sequence: int = 1, disabled: bool = False) -> Event:
    """What auth tells of a user."""
    return Event(
        type="auth.user.created.v1",
        subject=user_id,
        source="/telar/auth",
        time=datetime.now(UTC),
        data={"username": "someone", "external_id": None, "disabled": disabled, "quota": {"fetch_jobs": fetch_jobs}},
        sequence=sequence,
    )


class Fetcher:
    """A fetcher that serves, its bus, and a client of it."""

    def __init__(self, app: FastAPI, bus: Bus, issuer: TestIssuer, events: list[Event]) -> None:
        self.app = app
        self.bus = bus
        self.issuer = issuer
        self.events = events
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fetcher")

    async def call(self, method: str, path: str, *, user: str = OWNER, **options: Any) -> httpx.Response:
        headers = {**self.issuer.headers(user), **options.pop("headers", {})}
        return await self.http.request(method, f"/api/v1{path}", headers=headers, **options)

    async def job(self, job_id: str, *, user: str = OWNER) -> dict[str, Any]:
        answer = await self.call("GET", f"/jobs/{job_id}", user=user)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def ended(self, job_id: str, *, deadline_s: float = 30) -> dict[str, Any]:
        """The job, once it has ended."""
        until = time.monotonic() + deadline_s
        while True:
            job = await self.job(job_id)
            if job["status"] in ("completed", "failed", "cancelled"):
                return job
            if time.monotonic() > until:
                pytest.fail(f"The job has not ended within {deadline_s} s: {job}")
            await asyncio.sleep(0.05)

    async def items(self, job_id: str) -> list[dict[str, Any]]:
        """All items, over all pages."""
        items: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            page = (await self.call("GET", f"/jobs/{job_id}/items", params={"limit": "200", **cursor})).json()
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            cursor = {"cursor": page["next_cursor"]}


RunFetcher = Callable[[FetcherSettings], contextlib.AbstractAsyncContextManager[Fetcher]]


@pytest.fixture
def run_fetcher() -> RunFetcher:
    """Runs a fetcher whose bus also feeds a list of what it publishes; OWNER and STRANGER have accounts."""

    @contextlib.asynccontextmanager
    async def run(settings: FetcherSettings) -> AsyncIterator[Fetcher]:
        bus, issuer, events = create_bus(settings.common.bus_url, source="fetcher"), TestIssuer(), list[Event]()

        async def keep(event: Event) -> None:
            events.append(event)

        async def dead(_letter: Any) -> None:
            pytest.fail("an event could not be handled")

        await bus.start()
        await bus.subscribe("everything", ("fetcher.#",), keep, dead)
        app = create_app(settings, bus=bus, verifier=issuer.verifier())
        async with app.router.lifespan_context(app):
            fetcher = Fetcher(app, bus, issuer, events)
            for user in (OWNER, STRANGER):
                await bus.publish(account_event(user))
            try:
                yield fetcher
            finally:
                await fetcher.http.aclose()
        await bus.close()

    return run


@pytest.fixture
async def fetcher(run_fetcher: RunFetcher, settings: FetcherSettings) -> AsyncIterator[Fetcher]:
    async with run_fetcher(settings) as running:
        yield running


Eventually = Callable[..., Awaitable[None]]
