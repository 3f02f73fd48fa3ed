"""Limits that hold over processes: permits on each engine, and two real processes measured at the server."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from libs.common.testing import stack
from services.fetcher.domain.troubles import DomainState, Manners
from services.fetcher.errors import JobStoreUnavailable
from services.fetcher.models import Permit
from services.fetcher.operations.politeness import Grant, Need, Politeness
from services.fetcher.repository import MongoDomains, MongoPermits, MongoStore
from services.fetcher.settings import FetcherSettings
from tests.integration.fetcher.conftest import Eventually, RunFetcher
from tests.integration.fetcher.pictures import PictureServer
from tests.integration.fetcher.test_crash import _WORKER, settings_json

MANNERS = Manners(per_domain=4, backoff_s=1, breaker_s=1, cap_s=60, dead_s=60)


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


def politeness(store: MongoStore, holder: str, clock: Clock, *, max_downloads: int = 20) -> Politeness:
    return Politeness(
        MongoPermits(store),
        MongoDomains(store),
        MANNERS,
        holder=holder,
        lease_ms=10_000,
        max_downloads=max_downloads,
        now_ms=clock,
    )


def begin_all(polite: Politeness, domain: str, *, below: int = 4, rate_per_s: float | None = None) -> list[Grant]:
    grants = []
    while grant := polite.begin(domain, below=below, rate_per_s=rate_per_s):
        grants.append(grant)
    return grants


async def test_two_processes_never_hold_more_than_a_domains_permits(store: MongoStore) -> None:
    clock = Clock()
    both = [politeness(store, name, clock) for name in "ab"]
    await asyncio.gather(*(polite.acquire({"x": Need(count=9, below=4)}) for polite in both))
    assert sum(len(begin_all(polite, "x")) for polite in both) == 4


async def test_all_downloads_together_have_a_limit_too(store: MongoStore) -> None:
    clock = Clock()
    both = [politeness(store, name, clock, max_downloads=5) for name in "ab"]
    needs = {f"{letter}.example": Need(count=4, below=4) for letter in "abcd"}
    for polite in both:
        await polite.acquire(needs)
    assert sum(len(begin_all(polite, domain)) for polite in both for domain in needs) == 5


class Ticking(Clock):
    """Never tells the same time twice."""

    def __call__(self) -> int:
        self.ms += 1
        return self.ms


class LosesAnAnswer(MongoPermits):
    """A job store whose first answer about taken permits is lost on its way."""

    lost = False

    async def take(self, holder: str, wanted: Mapping[str, Sequence[int]], **times: int) -> list[Permit]:
        taken = await super().take(holder, wanted, **times)
        if not self.lost:
            self.lost = True
            raise JobStoreUnavailable
        return taken


async def test_permits_renewed_from_two_sides_at_once_are_kept(store: MongoStore) -> None:
    clock = Ticking()
    polite = politeness(store, "a", clock)
    needs = {"x": Need(count=9, below=4)}
    await polite.acquire(needs)
    clock.ms += 8_000  # past what counts as sure, within the lease
    await asyncio.gather(*(polite.sync({"x"}) if turn % 2 else polite.acquire(needs) for turn in range(6)))
    assert len(begin_all(polite, "x")) == 4


async def test_permits_whose_answer_was_lost_are_found_again(store: MongoStore) -> None:
    clock = Clock()
    polite = politeness(store, "a", clock)
    polite._permits = LosesAnAnswer(store)
    needs = {"x": Need(count=9, below=4)}
    with pytest.raises(JobStoreUnavailable):
        await polite.acquire(needs)
    await polite.acquire({"y": Need(count=1, below=1)})
    await polite.sync({"x", "y"})
    assert len(begin_all(polite, "x")) == 4


class AwayOnce(MongoDomains):
    """A job store that is away when the first trouble is to be noted."""

    was_away = False

    async def note(self, state: DomainState) -> None:
        if not self.was_away:
            self.was_away = True
            raise JobStoreUnavailable
        await super().note(state)


async def test_a_pause_that_a_server_asked_for_outlives_a_job_store_that_was_away(store: MongoStore) -> None:
    clock = Clock()
    polite = politeness(store, "a", clock)
    polite._domains = AwayOnce(store)
    await polite.acquire({"x": Need(count=1, below=1)})
    polite.report("x", "http-429", 30.0)
    with pytest.raises(JobStoreUnavailable):
        await polite.sync({"x"})
    await polite.sync({"x"})
    assert begin_all(polite, "x") == []
    assert [state.blocked_until_ms for state in await MongoDomains(store).in_trouble()] == [clock.ms + 30_000]


async def test_a_process_that_has_none_gets_its_share(store: MongoStore) -> None:
    clock = Clock()
    first, second = politeness(store, "a", clock), politeness(store, "b", clock)
    needs = {"x": Need(count=99, below=4)}
    await first.acquire(needs)
    grants = begin_all(first, "x")
    assert len(grants) == 4
    held: list[Grant] = []
    for _ in range(6):
        await second.acquire(needs)
        await first.sync({"x"})
        for grant in grants:
            first.end(grant)
        await first.sync({"x"})
        await first.acquire(needs)
        grants = begin_all(first, "x")
        clock.ms += 1_001
        await second.sync({"x"})
        await second.acquire(needs)
        held += begin_all(second, "x")
        assert len(held) + len(grants) <= 4
    assert len(held) == 2


async def test_a_killed_holders_permits_are_free_after_its_lease_and_a_late_one_starts_nothing(
    store: MongoStore,
) -> None:
    clock = Clock()
    first, second = politeness(store, "a", clock), politeness(store, "b", clock)
    needs = {"x": Need(count=9, below=4)}
    await first.acquire(needs)
    clock.ms += 9_000
    assert begin_all(first, "x") == []
    await second.acquire(needs)
    assert begin_all(second, "x") == []
    clock.ms += 1_001
    await second.acquire(needs)
    assert len(begin_all(second, "x")) == 4
    await first.sync({"x"})
    assert begin_all(first, "x") == []


async def test_a_pace_holds_over_a_change_of_holders(store: MongoStore) -> None:
    clock = Clock()
    first, second = politeness(store, "a", clock), politeness(store, "b", clock)
    needs = {"x": Need(count=9, below=4)}
    starts: list[int] = []
    for polite in (first, second):
        await polite.acquire(needs)
        for _ in range(40):
            grants = begin_all(polite, "x", rate_per_s=2)
            starts += [clock.ms] * len(grants)
            for grant in grants:
                polite.end(grant)
            clock.ms += 100
            await polite.sync({"x"})
        await polite.close()
    assert 14 <= len(starts) <= 18
    assert all(sum(at <= start < at + 1_000 for start in starts) <= 3 for at in starts)


async def test_what_one_process_learns_of_a_domain_holds_for_the_other(store: MongoStore) -> None:
    clock = Clock()
    first, second = politeness(store, "a", clock), politeness(store, "b", clock)
    await second.acquire({"x": Need(count=2, below=4)})
    first.report("x", "http-429", 30)
    assert first.has_news
    await first.sync(())
    await second.sync({"x"})
    assert second.left_alone() == {"x"}
    assert begin_all(second, "x") == []
    clock.ms += 30_000
    await second.acquire({"x": Need(count=9, below=4)})
    assert len(begin_all(second, "x")) == 2
    for _ in range(5):
        first.report("y", "connect-failed")
    await first.sync(())
    await second.sync({"x"})
    assert "y" in second.left_alone()


async def test_permits_above_a_narrowed_limit_are_no_reason_to_do_without_lower_ones(store: MongoStore) -> None:
    clock = Clock()
    first, second = politeness(store, "a", clock), politeness(store, "b", clock)
    await second.acquire({"x": Need(count=2, below=4)})
    await first.acquire({"x": Need(count=2, below=4)})
    await second.close()
    first.report("x", "http-503")
    clock.ms += 1_001
    await first.acquire({"x": Need(count=2, below=4)})
    assert {grant.number for grant in begin_all(first, "x")} == {0, 1}


@contextlib.contextmanager
def workers(settings: FetcherSettings, count: int) -> Iterator[None]:
    """Fetcher processes that live as long as the block."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, settings_json(settings)],
            cwd=Path(__file__).parents[3],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        for _ in range(count)
    ]
    try:
        for worker in started:
            assert worker.stdout is not None
            while worker.stdout.readline() != b"ready\n":
                assert worker.poll() is None
        yield
    finally:
        for worker in started:
            worker.kill()
            worker.communicate()


@pytest.fixture
def bus_url() -> Iterator[str]:
    """A real broker that all processes share."""
    with stack.run_rabbitmq() as broker:
        broker.wait_ready()
        yield broker.amqp_url


@pytest.mark.rabbitmq
async def test_a_domains_limit_and_rate_hold_over_processes_measured_at_the_server(
    run_fetcher: RunFetcher,
    settings: FetcherSettings,
    source: Any,
    pictures: PictureServer,
    eventually: Eventually,
    bus_url: str,
) -> None:
    pictures.delay_s = 0.5  # until several processes take part
    await source["shop"].insert_many([{"image": f"{pictures.url}/ok/{number}.jpg"} for number in range(400)])
    common = settings.common.model_copy(update={"bus_url": bus_url})
    limited = settings.model_copy(update={"max_per_domain": 3, "common": common})
    options = {"search_field": "image", "options": {"rate_per_domain": 60}}
    path = f"/download/collection/{source.name}/shop"
    permits = source.client[settings.mongo_database]["permits"]
    accounts = source.client[settings.mongo_database]["accounts"]
    async with run_fetcher(limited) as fetcher:

        async def known() -> bool:
            return bool(await accounts.count_documents({}) == 2)

        await eventually(known, 30)
        with workers(limited, 2):
            began = time.monotonic()
            answer = await fetcher.call("POST", path, json=options)
            holders: set[str] = set()

            async def several() -> bool:
                holders.update(
                    str(permit["holder"]) for permit in await permits.find({"domain": "127.0.0.1"}).to_list(9)
                )
                return len(holders - {"None"}) > 1

            await eventually(several, 60)
            pictures.delay_s = 0.02
            job = await fetcher.ended(answer.json()["job_id"], deadline_s=60)
            took_s = time.monotonic() - began
        # One broker for all: its end is heard here, whichever process told it.
        await eventually(lambda: "fetcher.job.completed.v1" in [event.type for event in fetcher.events], 30)
    assert job["items"]["completed"] == 400
    assert pictures.most_at_once <= 3
    assert took_s > (400 - 3) / 60
    assert set(pictures.hits.values()) == {1}
