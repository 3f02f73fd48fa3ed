"""More work than the database has connections for: who waits in vain is told to come back, and no log shows a trace."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI
from sqlalchemy import text

from libs.common import problems
from libs.common.db import Database, DatabaseUnavailable, transaction
from libs.common.leases import Leases
from libs.common.telemetry import Metrics
from libs.common.uow import UnitOfWorkFactory
from tests.integration.common.operations_lab import Eventually

MakeDatabase = Callable[..., Awaitable[Database]]


@pytest.fixture
async def crowded(make_database: MakeDatabase) -> AsyncIterator[UnitOfWorkFactory]:
    """Units of work over a pool of two connections, both of which somebody else holds."""
    database = await make_database(pool_size=2, pool_wait_s=0.05)
    async with contextlib.AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(database.engine.connect())
        yield UnitOfWorkFactory(database, source="/telar/crowd")


async def ask(uow: UnitOfWorkFactory) -> None:
    async with uow() as unit:
        await unit.session.execute(text("SELECT 1"))


async def test_work_that_gets_no_connection_is_told_that_the_database_is_away(crowded: UnitOfWorkFactory) -> None:
    with pytest.raises(DatabaseUnavailable) as refused:
        await ask(crowded)
    assert "in use" in refused.value.detail
    assert refused.value.retry_after_s
    with pytest.raises(DatabaseUnavailable):
        async with transaction(crowded.database) as session:
            await session.execute(text("SELECT 1"))


async def test_a_request_that_gets_no_connection_is_a_503_without_a_traceback(crowded: UnitOfWorkFactory) -> None:
    app = FastAPI()
    problems.install(app, Metrics("crowd"))

    @app.get("/machines")
    async def machines() -> None:
        await ask(crowded)

    transport = httpx.ASGITransport(app)  # it lets through what nobody has answered
    with structlog.testing.capture_logs() as lines:
        async with httpx.AsyncClient(transport=transport, base_url="http://crowd") as http:
            answer = await http.get("/machines")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/database-unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert [line["event"] for line in lines] == ["request_refused"]


async def test_a_job_that_gets_no_connection_is_told_by_its_slug_and_tried_again(
    crowded: UnitOfWorkFactory, database: Database, eventually: Eventually
) -> None:
    runs = 0

    async def job() -> None:
        nonlocal runs
        runs += 1
        await ask(crowded)

    leases = Leases(database)
    told: list[Any] = []
    with structlog.testing.capture_logs() as lines:
        leases.start("crowded", 0.02, job)
        try:
            await eventually(lambda: runs >= 2)
        finally:
            await leases.close()
        told += [line for line in lines if line["event"] == "job_failed"]
    assert {(line["log_level"], line["error"], "exc_info" in line) for line in told} == {
        ("warning", "database-unavailable", False)
    }


async def test_a_connection_that_statements_stood_alone_on_is_in_a_transaction_for_who_takes_it_next(
    make_database: MakeDatabase,
) -> None:
    database = await make_database(pool_size=1)
    uow = UnitOfWorkFactory(database, source="/telar/modes")
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS modes (number int)"))
    for number in range(3):
        async with database.standalone.connect() as connection:  # nobody commits it
            await connection.execute(text("INSERT INTO modes VALUES (:number)"), {"number": number})
        async with uow() as unit:  # nor this, which is undone
            await unit.session.execute(text("INSERT INTO modes VALUES (100)"))
        async with uow.looking() as session:
            found = (await session.execute(text("SELECT number FROM modes ORDER BY number"))).scalars().all()
        assert list(found) == list(range(number + 1))
