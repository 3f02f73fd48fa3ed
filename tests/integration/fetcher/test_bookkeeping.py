"""What the job store keeps for the fetcher as every service does: outbox, inbox, slots, idempotency keys."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from libs.common.bus.local import LocalBus
from libs.common.bus.protocol import DeadLetter
from libs.common.clock import SystemClock
from libs.common.errors import Forbidden, QuotaExceeded, Unavailable
from libs.common.events import Event
from libs.common.idempotency import AnswerLost, IdempotencyKeyReused, StillRunning, Stored
from libs.common.inbox import DeadLetterNotFound
from libs.common.outbox import OutboxRelay, Pending
from services.fetcher.domain.jobs import JobState
from services.fetcher.models import ItemFilter
from services.fetcher.repository import (
    MongoAccounts,
    MongoIdempotencyStore,
    MongoInbox,
    MongoItems,
    MongoJobs,
    MongoOutboxStore,
    MongoStore,
)
from services.fetcher.service.lifecycle import Lifecycle
from tests.integration.fetcher.conftest import OWNER, account_event
from tests.integration.fetcher.records import event, job


async def test_events_leave_in_order_and_only_published_ones_go(store: MongoStore) -> None:
    jobs, outbox = MongoJobs(store), MongoOutboxStore(store)
    await jobs.add(job(), event("job-001"))
    running = await jobs.change(job(), event("job-001", "fetcher.job.started.v1", 2), state=JobState.RUNNING)
    assert running is not None
    await jobs.change(running, event("job-001", "fetcher.job.completed.v1", 3), state=JobState.COMPLETED)
    assert (await outbox.lag())[0] == 3

    seen: list[list[str]] = []

    async def first_only(batch: list[Pending]) -> list[int | str]:
        seen.append([pending.event.type for pending in batch])
        return [batch[0].key]

    assert await outbox.relay_batch(first_only, 10) == 1  # type: ignore[arg-type]  # a list is a sequence
    assert await outbox.relay_batch(first_only, 10) == 1  # type: ignore[arg-type]  # the same
    assert seen == [
        ["fetcher.job.created.v1", "fetcher.job.started.v1", "fetcher.job.completed.v1"],
        ["fetcher.job.started.v1", "fetcher.job.completed.v1"],
    ]
    assert (await outbox.lag())[0] == 1


async def test_an_event_wakes_the_relay_of_the_process_that_wrote_it(
    store: MongoStore, eventually: Callable[..., Awaitable[None]]
) -> None:
    bus, seen = LocalBus(), list[str]()

    async def keep(event: Event) -> None:
        seen.append(event.type)

    async def dead(_letter: DeadLetter) -> None:
        pytest.fail("an event could not be handled")

    await bus.start()
    await bus.subscribe("everything", ("fetcher.#",), keep, dead)
    relay = OutboxRelay(MongoOutboxStore(store), bus, poll_s=3_600)
    jobs = MongoJobs(store, on_event=relay.wake)
    await relay.start()
    await jobs.add(job(), event("job-001"))
    await eventually(lambda: bool(seen))
    await jobs.change(job(), event("job-001", "fetcher.job.started.v1", 2), state=JobState.RUNNING)
    await eventually(lambda: len(seen) > 1)
    await relay.close()
    await bus.close()
    assert seen == ["fetcher.job.created.v1", "fetcher.job.started.v1"]


async def test_only_one_relay_works_at_a_time(store: MongoStore) -> None:
    await MongoJobs(store).add(job(), event("job-001"))

    async def nothing(_batch: list[Pending]) -> list[int | str]:
        return []

    first, second = MongoOutboxStore(store), MongoOutboxStore(store)
    called: list[str] = []

    async def called_by_second(_batch: list[Pending]) -> list[int | str]:
        called.append("second")
        return []

    await first.relay_batch(nothing, 10)  # type: ignore[arg-type]  # a list is a sequence
    await second.relay_batch(called_by_second, 10)  # type: ignore[arg-type]  # the same
    assert called == []


async def test_a_deleted_job_stays_until_its_last_event_has_left(store: MongoStore) -> None:
    jobs, outbox = MongoJobs(store), MongoOutboxStore(store)
    await jobs.add(job(), event("job-001"))
    await jobs.change(job(), event("job-001", "fetcher.job.deleted.v1", 2), state=JobState.DELETED)
    assert await jobs.get("job-001") is None
    await jobs.sweep()
    assert (await outbox.lag())[0] == 2

    async def all_of(batch: list[Pending]) -> list[int | str]:
        return [pending.key for pending in batch]

    await outbox.relay_batch(all_of, 10)  # type: ignore[arg-type]  # a list is a sequence
    await jobs.sweep()
    assert [found.id for found in await jobs.in_states([JobState.DELETED])] == ["job-001"]
    assert await jobs.claim("job-001", holder="a", now_ms=1, until_ms=100)
    assert not await jobs.claim("job-001", holder="b", now_ms=1, until_ms=100)
    assert await jobs.note_planning("job-001", holder="a", purged=True)
    await jobs.sweep()
    assert await store.database["jobs"].count_documents({}) == 0


async def test_parallel_reservations_never_exceed_the_limit(store: MongoStore) -> None:
    accounts = MongoAccounts(store)
    await accounts.on_user_event(account_event(OWNER, fetch_jobs=3))
    results = await asyncio.gather(
        *(accounts.reserve(OWNER, f"job-{number}") for number in range(30)), return_exceptions=True
    )
    granted = [result for result in results if not isinstance(result, BaseException)]
    assert len(granted) == 3
    assert sum(isinstance(result, QuotaExceeded) for result in results) == 27
    newest = max(granted, key=lambda usage: usage.sequence)
    assert newest.used == {"fetch_jobs": 3}


async def test_a_slot_is_free_again_after_its_release(store: MongoStore) -> None:
    accounts = MongoAccounts(store)
    await accounts.on_user_event(account_event(OWNER, fetch_jobs=1))
    await accounts.reserve(OWNER, "job-1")
    usage = await accounts.begin_release(OWNER, "job-1")
    assert usage.used == {"fetch_jobs": 0}
    with pytest.raises(QuotaExceeded):
        await accounts.reserve(OWNER, "job-2")
    await accounts.release("job-1")
    assert (await accounts.reserve(OWNER, "job-2")).used == {"fetch_jobs": 1}


async def test_a_slot_taken_again_survives_the_end_and_the_sweep_of_its_first_use(store: MongoStore) -> None:
    accounts = MongoAccounts(store)
    await accounts.on_user_event(account_event(OWNER, fetch_jobs=1))
    await accounts.reserve(OWNER, "job-1")
    [(_, first_taken_at_ms)] = await accounts.slots()
    await accounts.begin_release(OWNER, "job-1")
    await asyncio.sleep(0.002)
    assert (await accounts.reserve(OWNER, "job-1")).used == {"fetch_jobs": 1}
    await accounts.release("job-1")
    await accounts.release("job-1", taken_at_ms=first_taken_at_ms)
    with pytest.raises(QuotaExceeded):
        await accounts.reserve(OWNER, "job-2")


async def test_of_two_who_retry_a_job_the_slower_one_leaves_the_faster_ones_slot(store: MongoStore) -> None:
    jobs, accounts = MongoJobs(store), MongoAccounts(store)
    lifecycle = Lifecycle(jobs, MongoItems(store), accounts, SystemClock(), source="/telar/fetcher")
    await accounts.on_user_event(account_event(OWNER, fetch_jobs=1))
    ended = replace(job(), owner_id=OWNER, state=JobState.COMPLETED)
    await jobs.add(ended, event("job-001"))
    assert await lifecycle.reopen(ended, ItemFilter()) is not None
    assert await lifecycle.reopen(ended, ItemFilter()) is None
    with pytest.raises(QuotaExceeded):
        await accounts.reserve(OWNER, "job-002")


async def test_unknown_and_disabled_accounts_get_no_slot_and_old_events_change_nothing(store: MongoStore) -> None:
    accounts = MongoAccounts(store)
    with pytest.raises(Unavailable):
        await accounts.reserve(OWNER, "job-1")
    await accounts.on_user_event(account_event(OWNER, fetch_jobs=-1, sequence=5))
    await accounts.on_user_event(account_event(OWNER, disabled=True, sequence=4))
    for number in range(4):
        await accounts.reserve(OWNER, f"job-{number}")
    await accounts.on_user_event(account_event(OWNER, disabled=True, sequence=6))
    with pytest.raises(Forbidden):
        await accounts.reserve(OWNER, "job-9")


async def test_an_event_is_handled_once(store: MongoStore) -> None:
    handled: list[str] = []

    async def handler(given: Event) -> None:
        handled.append(given.id)

    inbox = MongoInbox("fetcher", LocalBus(), store, {"auth.user.created.v1": handler})
    given = account_event(OWNER)
    for _ in range(3):
        await inbox.handle(given)
    assert handled == [given.id]


async def test_dead_letters_are_kept_listed_and_discarded(store: MongoStore) -> None:
    inbox = MongoInbox("fetcher", LocalBus(), store, {})
    at = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
    for number in range(3):
        await inbox.keep_dead(
            DeadLetter(queue="fetcher", body=b"\x00\xff%d" % number, reason="no", deliveries=5, failed_at=at)
        )
    first = await inbox.dead_letters(before=None, limit=1)
    rest = await inbox.dead_letters(before=first[0]["id"], limit=10)
    assert [row["body"] for row in [*first, *rest]] == [b"\x00\xff2", b"\x00\xff1", b"\x00\xff0"]
    assert first[0]["failed_at"] == at
    await inbox.discard(first[0]["id"])
    with pytest.raises(DeadLetterNotFound):
        await inbox.discard(first[0]["id"])
    with pytest.raises(DeadLetterNotFound):
        await inbox.replay(UUID(int=0))


async def test_an_idempotency_key_is_held_finished_and_answered_again(store: MongoStore) -> None:
    keys = MongoIdempotencyStore(store)
    assert await keys.begin("me", "k", "print") is None
    with pytest.raises(StillRunning):
        await keys.begin("me", "k", "print")
    with pytest.raises(IdempotencyKeyReused):
        await keys.begin("me", "k", "other")
    answer = Stored(202, [("location", "/x")], b"\x00body")
    await keys.finish("me", "k", answer)
    assert await keys.begin("me", "k", "print") == answer
    assert await keys.begin("you", "k", "print") is None


async def test_a_key_is_given_back_unless_something_was_changed_under_it(store: MongoStore) -> None:
    keys = MongoIdempotencyStore(store)
    await keys.begin("me", "k", "print")
    await keys.forget("me", "k")
    assert await keys.begin("me", "k", "print") is None
    await keys.mark(None, "me", "k")
    await keys.forget("me", "k")
    with pytest.raises(StillRunning):
        await keys.begin("me", "k", "print")
    await store.database["idempotency_keys"].update_one({"_id": "me:k"}, {"$set": {"lease_until_ms": 0}})
    with pytest.raises(AnswerLost):
        await keys.begin("me", "k", "print")


async def test_of_many_equal_keys_one_may_go_on(store: MongoStore) -> None:
    keys = MongoIdempotencyStore(store)
    results = await asyncio.gather(*(keys.begin("me", "k", "print") for _ in range(20)), return_exceptions=True)
    assert results.count(None) == 1
    assert sum(isinstance(result, StillRunning) for result in results) == 19
