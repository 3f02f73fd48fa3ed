"""Whose item runs next, with the items in a real store and downloads that end when the test lets them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from services.fetcher.adapters.storage import FolderStore
from services.fetcher.domain.jobs import ItemState
from services.fetcher.domain.troubles import Manners
from services.fetcher.errors import JobStoreUnavailable
from services.fetcher.models import Item, Job
from services.fetcher.operations import Committer, Politeness, Rules, Scheduler
from services.fetcher.operations import committer as committer_module
from services.fetcher.operations.politeness import Need
from services.fetcher.operations.worker import Downloaded, ItemWorker, Outcome
from services.fetcher.repository import MongoDomains, MongoItems, MongoPermits, MongoStore
from tests.integration.fetcher.records import item, job

LARGE, SMALL = "job-large", "job-small"


class OneAtATime:
    """Stands for the downloads: each waits until it is let go; remembers whose turn it was."""

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.jobs: list[Job] = []
        self.go = asyncio.Semaphore(0)

    async def run(self, item: Item, job: Job, *, max_attempts: int, downloaded: Downloaded) -> Outcome:
        self.turns.append(item.job_id)
        self.jobs.append(job)
        await self.go.acquire()
        downloaded(None)
        return Outcome(ItemState.COMPLETED, {"state": ItemState.COMPLETED.value, "attempts": max_attempts})


def politeness(store: MongoStore) -> Politeness:
    return Politeness(
        MongoPermits(store),
        MongoDomains(store),
        Manners(per_domain=1, backoff_s=1, breaker_s=1, cap_s=60, dead_s=60),
        holder="test",
        lease_ms=60_000,
        max_downloads=1,
        now_ms=store.now_ms,
    )


class LosesAnAnswer(MongoItems):
    """A job store whose first answer about taken items is lost on its way."""

    lost = 0

    async def claim(self, job_id: str, **options: Any) -> list[Item]:
        taken = await super().claim(job_id, **options)
        if not self.lost:
            self.lost = len(taken)
            raise JobStoreUnavailable
        return taken


async def test_items_taken_by_a_call_whose_answer_was_lost_are_not_held_for_ever(
    store: MongoStore, tmp_path: Path, eventually: Callable[..., Awaitable[None]]
) -> None:
    repository = LosesAnAnswer(store)
    await repository.add([item(number, job_id=SMALL) for number in range(4)])
    downloads = OneAtATime()
    worker = cast("ItemWorker", downloads)
    scheduler, committer = scheduling(store, repository, worker, tmp_path)
    await scheduler.set_jobs({SMALL: job(id=SMALL)}, {})
    scheduler.start(committer)
    await eventually(lambda: downloads.turns == [SMALL])
    assert repository.lost == 4
    for turn in range(2, 5):
        downloads.go.release()
        await eventually(lambda turn=turn: len(downloads.turns) == turn)
    downloads.go.release()
    await scheduler.close()
    assert (await repository.counts(SMALL))[0]["completed"] == 4


def scheduling(
    store: MongoStore,
    repository: MongoItems,
    worker: ItemWorker,
    folder: Path,
    *,
    now_ms: Callable[[], int] | None = None,
) -> tuple[Scheduler, Committer]:
    """A scheduler of one download at a time, and the committer it is started with."""
    scheduler = Scheduler(
        repository,
        worker,
        politeness(store),
        Rules(max_downloads=1, max_per_domain=1, max_unwritten=1, rate_per_domain=None, max_attempts=1),
        holder="test",
        lease_ms=60_000,
        now_ms=now_ms or store.now_ms,
    )
    committer = Committer(
        repository,
        FolderStore(folder),
        worker,
        holder="test",
        on_outcome=lambda *_: None,
        on_room=scheduler.room,
        on_full=lambda _: None,
    )
    return scheduler, committer


async def test_a_place_that_frees_goes_to_the_job_served_longest_ago(
    store: MongoStore, tmp_path: Path, eventually: Callable[..., Awaitable[None]]
) -> None:
    repository = MongoItems(store)
    await repository.add(
        [item(number, job_id=name) for name, count in ((LARGE, 40), (SMALL, 4)) for number in range(count)]
    )
    downloads = OneAtATime()
    worker = cast("ItemWorker", downloads)
    scheduler, committer = scheduling(store, repository, worker, tmp_path)
    await scheduler.set_jobs({LARGE: job(id=LARGE)}, {})
    scheduler.start(committer)
    await eventually(lambda: downloads.turns == [LARGE])
    await scheduler.set_jobs({LARGE: job(id=LARGE), SMALL: job(id=SMALL)}, {})
    for turn in range(2, 13):
        downloads.go.release()
        await eventually(lambda turn=turn: len(downloads.turns) == turn)
    downloads.go.release()
    await scheduler.close()
    assert downloads.turns.count(SMALL) == 4


class Looks(MongoItems):
    """A job store that counts the looks at it, and answers when the test lets it."""

    count = 0

    def __init__(self, store: MongoStore) -> None:
        super().__init__(store)
        self.go = asyncio.Event()

    async def claim(self, job_id: str, **options: Any) -> list[Item]:
        taken = await super().claim(job_id, **options)
        self.count += 1
        await self.go.wait()
        return taken


@pytest.mark.parametrize("during", [False, True], ids=["after the look", "during the look"])
async def test_new_items_of_a_job_are_taken_however_fresh_the_last_look(
    store: MongoStore, tmp_path: Path, eventually: Callable[..., Awaitable[None]], *, during: bool
) -> None:
    repository, downloads = Looks(store), OneAtATime()
    if not during:
        repository.go.set()
    worker = cast("ItemWorker", downloads)
    scheduler, committer = scheduling(store, repository, worker, tmp_path, now_ms=lambda: 1)  # no look ages
    await scheduler.set_jobs({SMALL: job(id=SMALL)}, {})
    scheduler.start(committer)
    await eventually(lambda: repository.count == 1)
    await repository.add([item(1, job_id=SMALL)])
    scheduler.look_again(job(id=SMALL, conditional=True), {"a.example"})
    repository.go.set()
    await eventually(lambda: downloads.turns == [SMALL])
    assert downloads.jobs[0].conditional
    downloads.go.release()
    await scheduler.close()


async def test_new_items_of_a_domain_that_is_passed_over_cost_no_look(
    store: MongoStore, tmp_path: Path, eventually: Callable[..., Awaitable[None]]
) -> None:
    repository, downloads = Looks(store), OneAtATime()
    repository.go.set()
    await repository.add([item(number, job_id=SMALL) for number in range(20)])
    scheduler, committer = scheduling(store, repository, cast("ItemWorker", downloads), tmp_path, now_ms=lambda: 1)
    await scheduler.set_jobs({SMALL: job(id=SMALL)}, {})
    scheduler.start(committer)
    await eventually(lambda: repository.count == 2)  # sixteen were taken, and nothing is there but their crowded domain
    await repository.add([item(20, job_id=SMALL)])
    scheduler.look_again(job(id=SMALL), {"a.example"})
    await asyncio.sleep(0.1)
    await repository.add([item(21, job_id=SMALL, domain="b.example")])
    scheduler.look_again(job(id=SMALL), {"b.example"})
    await eventually(lambda: scheduler.waiting == 16)
    assert repository.count == 3
    await scheduler.close()


async def test_what_was_taken_starts_with_the_permits_at_hand(
    store: MongoStore, tmp_path: Path, eventually: Callable[..., Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer_only_if_nothing_waits(_: Politeness, needs: Mapping[str, Need]) -> None:
        if needs:
            await asyncio.Event().wait()

    repository, downloads = MongoItems(store), OneAtATime()
    await repository.add([item(1, job_id=SMALL)])
    scheduler, committer = scheduling(store, repository, cast("ItemWorker", downloads), tmp_path)
    await scheduler.set_jobs({SMALL: job(id=SMALL)}, {})
    scheduler.start(committer)
    await eventually(lambda: len(downloads.turns) == 1)
    monkeypatch.setattr(Politeness, "acquire", answer_only_if_nothing_waits)
    downloads.go.release()
    await eventually(lambda: scheduler.idle)
    await repository.add([item(2, job_id=SMALL)])
    scheduler.look_again(job(id=SMALL), {"a.example"})
    await eventually(lambda: len(downloads.turns) == 2)
    assert (await repository.counts(SMALL))[0]["downloading"] == 1
    await scheduler.close()


async def test_the_last_outcome_does_not_wait_for_company(
    store: MongoStore, tmp_path: Path, eventually: Callable[..., Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer_module, "_GATHER_S", 3_600)
    repository, downloads = MongoItems(store), OneAtATime()
    await repository.add([item(1, job_id=SMALL)])
    scheduler, committer = scheduling(store, repository, cast("ItemWorker", downloads), tmp_path)
    await scheduler.set_jobs({SMALL: job(id=SMALL)}, {})
    scheduler.start(committer)
    downloads.go.release()
    await eventually(lambda: scheduler.idle and len(downloads.turns) == 1)
    assert (await repository.counts(SMALL))[0]["completed"] == 1
    await scheduler.close()


async def test_nothing_of_a_job_that_was_being_taken_away_runs_on_after_the_end(
    store: MongoStore,
    tmp_path: Path,
    eventually: Callable[..., Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    repository = MongoItems(store)
    await repository.add([item(number, job_id=SMALL) for number in range(4)])
    downloads = OneAtATime()
    scheduler, committer = scheduling(store, repository, cast("ItemWorker", downloads), tmp_path)
    await scheduler.set_jobs({SMALL: job(id=SMALL)}, {})
    scheduler.start(committer)
    await eventually(lambda: downloads.turns == [SMALL])
    with monkeypatch.context() as patch:
        patch.setattr(committer, "flush", hang)
        taking_away = asyncio.create_task(scheduler.set_jobs({}, {}))
        await asyncio.sleep(0)  # the job is no longer the scheduler's, its attempt still runs
        taking_away.cancel()
        await asyncio.wait({taking_away})
    assert scheduler.running == 1
    await scheduler.close()
    assert scheduler.running == 0
