"""Scheduled jobs on a real database: one replica at a time, taken over when it dies."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import text

from libs.common.db import Database
from libs.common.leases import Leases
from tests.integration.common.operations_lab import Eventually

MakeLeases = Callable[..., Leases]


@pytest.fixture
async def make_leases(database: Database) -> AsyncIterator[MakeLeases]:
    made: list[Leases] = []

    def make(lease_s: float = 15.0) -> Leases:
        made.append(Leases(database, lease_s=lease_s))
        return made[-1]

    async with database.engine.begin() as connection:
        await connection.execute(text("DELETE FROM leases"))
    yield make
    for leases in made:
        await leases.close()


class Job:
    """Counts its runs and how many of it run at once."""

    def __init__(self, work: Callable[[], Awaitable[object]] | None = None) -> None:
        self.runs = 0
        self.ends = 0
        self.running = 0
        self.most = 0
        self._work = work

    async def __call__(self) -> None:
        self.runs += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self._work is not None:
                await self._work()
            self.ends += 1
        finally:
            self.running -= 1


async def test_a_job_runs_again_and_again_and_never_on_two_replicas_at_once(
    make_leases: MakeLeases, eventually: Eventually
) -> None:
    async def work() -> None:
        await asyncio.sleep(0.01)  # the job's work, during which the other replicas try

    job = Job(work)
    for _ in range(4):
        make_leases().start("sweep", 0.02, job)
    await eventually(lambda: job.ends >= 6)
    assert job.most == 1


async def test_a_job_is_not_run_before_it_is_due_again(make_leases: MakeLeases, eventually: Eventually) -> None:
    job, other = Job(), Job()
    leases = make_leases()
    leases.start("hourly", 3600, job)
    await eventually(lambda: job.ends == 1)
    make_leases().start("hourly", 3600, job)
    leases.start("often", 0.02, other)
    await eventually(lambda: other.ends >= 5)
    assert job.runs == 1


async def test_a_job_whose_replica_died_is_taken_over_when_the_lease_runs_out(
    make_leases: MakeLeases, database: Database, eventually: Eventually
) -> None:
    async with database.engine.begin() as connection:
        held_until = await connection.scalar(
            text(
                "INSERT INTO leases (name, holder, held_until, due_at)"
                " VALUES ('orphan', 'dead:1', now() + interval '0.3 s', now()) RETURNING held_until"
            )
        )
    free: list[bool] = []

    async def look() -> None:
        async with database.engine.connect() as connection:
            free.append(bool(await connection.scalar(text("SELECT now() >= :end"), {"end": held_until})))

    job = Job(look)
    make_leases().start("orphan", 3600, job)
    await eventually(lambda: job.ends == 1, 15)
    assert free == [True]


async def test_a_long_job_keeps_its_lease(make_leases: MakeLeases, database: Database, eventually: Eventually) -> None:
    go = asyncio.Event()
    job = Job(go.wait)
    for _ in range(2):
        make_leases(3).start("long", 3600, job)
    await eventually(lambda: job.runs == 1)

    async def renewed() -> bool:
        async with database.engine.begin() as connection:
            lived = text("SELECT held_until - due_at > interval '4 s' FROM leases WHERE name = 'long'")
            return bool((await connection.execute(lived)).scalar_one())

    await eventually(renewed)
    go.set()
    await eventually(lambda: job.ends == 1)
    assert job.runs == 1


async def test_a_job_is_cancelled_when_its_lease_is_lost(
    make_leases: MakeLeases, database: Database, eventually: Eventually
) -> None:
    job = Job(asyncio.Event().wait)
    make_leases(0.3).start("stolen", 3600, job)
    await eventually(lambda: job.running == 1)
    async with database.engine.begin() as connection:
        await connection.execute(
            text("UPDATE leases SET holder = 'thief', held_until = now() + interval '1 hour' WHERE name = 'stolen'")
        )
    await eventually(lambda: job.running == 0)
    assert job.ends == 0
    async with database.engine.begin() as connection:
        holder = (await connection.execute(text("SELECT holder FROM leases WHERE name = 'stolen'"))).scalar_one()
    assert holder == "thief"


async def test_a_job_that_fails_is_tried_again_when_it_is_next_due(
    make_leases: MakeLeases, eventually: Eventually
) -> None:
    failures = [RuntimeError("one"), RuntimeError("two")]

    async def work() -> None:
        if failures:
            raise failures.pop()

    job = Job(work)
    make_leases().start("shaky", 0.02, job)
    await eventually(lambda: job.ends >= 1)
    assert job.runs >= 3


async def test_closing_lets_another_replica_begin_at_once(make_leases: MakeLeases, eventually: Eventually) -> None:
    job, next_job = Job(asyncio.Event().wait), Job()
    leases = make_leases(60)
    leases.start("handover", 3600, job)
    await eventually(lambda: job.running == 1)
    await leases.close()
    assert job.running == 0
    make_leases(60).start("handover", 3600, next_job)
    await eventually(lambda: next_job.ends == 1, 15)
