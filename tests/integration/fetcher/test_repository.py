"""The contract of the job store, on every MongoDB-compatible engine at hand."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from libs.common.bus.local import LocalBus
from libs.common.bus.protocol import DeadLetter
from libs.common.errors import Forbidden, QuotaExceeded, Unavailable
from libs.common.events import Event
from libs.common.idempotency import AnswerLost, IdempotencyKeyReused, StillRunning, Stored
from libs.common.inbox import DeadLetterNotFound
from libs.common.outbox import Pending
from services.fetcher.domain.jobs import ItemState, JobKind, JobState
from services.fetcher.models import Item, ItemFilter, Job
from services.fetcher.repository import (
    MongoAccounts,
    MongoIdempotencyStore,
    MongoInbox,
    MongoItems,
    MongoJobs,
    MongoOutboxStore,
    MongoStore,
)
from tests.integration.fetcher.conftest import OWNER, account_event


def job(number: int = 1, **changes: object) -> Job:
    fields: dict[str, object] = {
        "id": f"job-{number:03d}",
        "owner_id": OWNER,
        "kind": JobKind.COLLECTION,
        "database": "shop",
        "collection": "products",
        "created_at_ms": 1,
        "updated_at_ms": 1,
    }
    return Job(**{**fields, **changes})  # type: ignore[arg-type]  # fields by name


def event(subject: str, type_: str = "fetcher.job.created.v1", sequence: int = 1) -> Event:
    return Event(
        type=type_, subject=subject, source="/telar/fetcher", time=datetime.now(UTC), data={}, sequence=sequence
    )


def item(number: int, *, job_id: str = "job-001", domain: str = "a.example") -> Item:
    return Item(
        id=f"{job_id}:{number:05d}",
        job_id=job_id,
        document_id=str(number),
        search_field="image",
        position=1,
        folder=f"shop/products/{number}-image",
        url=f"http://{domain}/{number}.jpg",
        domain=domain,
    )


async def test_a_job_comes_back_as_it_was_written(store: MongoStore) -> None:
    jobs = MongoJobs(store)
    written = job(filter='{"a": {"$gt": 1}}', limit=5, search_field="images.url")
    await jobs.add(written, event(written.id))
    assert await jobs.get(written.id) == written
    assert await jobs.get("job-404") is None


async def test_of_two_changes_of_the_same_version_one_wins(store: MongoStore) -> None:
    jobs = MongoJobs(store)
    await jobs.add(job(), event("job-001"))
    results = await asyncio.gather(*(jobs.change(job(), None, state=JobState.RUNNING) for _ in range(8)))
    assert [changed.version for changed in results if changed is not None] == [2]
    found = await jobs.get("job-001")
    assert found is not None
    assert (found.state, found.version) == (JobState.RUNNING, 2)


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


async def test_jobs_are_listed_newest_first_by_owner_and_state(store: MongoStore) -> None:
    jobs = MongoJobs(store)
    for number in range(1, 6):
        state = JobState.FAILED if number == 2 else JobState.PENDING
        await jobs.add(job(number, owner_id=f"owner-{number % 2}", state=state), event(f"job-{number:03d}"))
    both = [JobState.PENDING, JobState.FAILED]
    page = await jobs.page(owner_id=None, states=both, before=None, limit=3)
    assert [found.id for found in page] == ["job-005", "job-004", "job-003"]
    page = await jobs.page(owner_id=None, states=both, before="job-003", limit=3)
    assert [found.id for found in page] == ["job-002", "job-001"]
    page = await jobs.page(owner_id="owner-0", states=[JobState.PENDING], before=None, limit=3)
    assert [found.id for found in page] == ["job-004"]


async def test_planning_is_one_holders_right_until_its_lease_ends(store: MongoStore) -> None:
    jobs = MongoJobs(store)
    await jobs.add(job(), event("job-001"))
    assert await jobs.claim_planning("job-001", holder="a", now_ms=100, until_ms=200)
    assert not await jobs.claim_planning("job-001", holder="b", now_ms=150, until_ms=250)
    assert await jobs.claim_planning("job-001", holder="a", now_ms=150, until_ms=250)
    assert await jobs.claim_planning("job-001", holder="b", now_ms=251, until_ms=300)
    assert not await jobs.note_planning("job-001", holder="a", planned=True)
    assert await jobs.note_planning("job-001", holder="b", planned=True, documents=7)
    assert not await jobs.claim_planning("job-001", holder="a", now_ms=999, until_ms=1000)
    found = await jobs.get("job-001")
    assert found is not None
    assert (found.planned, found.documents) == (True, 7)


async def test_adding_the_same_items_again_changes_nothing(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(1), item(2)])
    await items.claim("job-001", limit=1, holder="a", now_ms=1, until_ms=100, without=())
    await items.add([item(1), item(2), item(3)])
    counts, _ = await items.counts("job-001")
    assert (counts["pending"], counts["downloading"]) == (2, 1)


async def test_parallel_claims_share_items_without_taking_one_twice(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(number) for number in range(100)])
    batches = await asyncio.gather(
        *(items.claim("job-001", limit=30, holder=holder, now_ms=1, until_ms=100, without=()) for holder in "abcdef")
    )
    taken = [claimed.id for batch in batches for claimed in batch]
    assert len(taken) == len(set(taken))
    assert all(
        claimed.attempts == 1 and claimed.state is ItemState.DOWNLOADING for batch in batches for claimed in batch
    )


async def test_claims_respect_due_times_and_crowded_domains(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(1), item(2, domain="b.example"), item(3, domain="c.example")])
    taken = await items.claim("job-001", limit=9, holder="a", now_ms=1, until_ms=100, without=["a.example"])
    assert {claimed.domain for claimed in taken} == {"b.example", "c.example"}
    await items.settle("a", [(taken[0], {"state": "pending", "not_before_ms": 500})])
    early = await items.claim("job-001", limit=9, holder="a", now_ms=499, until_ms=600, without=["a.example"])
    assert early == []
    due = await items.claim("job-001", limit=9, holder="a", now_ms=500, until_ms=600, without=["a.example"])
    assert [(claimed.id, claimed.attempts) for claimed in due] == [(taken[0].id, 2)]


async def test_only_the_holder_settles_an_item(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(1)])
    (claimed,) = await items.claim("job-001", limit=1, holder="a", now_ms=1, until_ms=100, without=())
    assert await items.settle("b", [(claimed, {"state": "completed"})]) == 0
    assert await items.settle("a", [(claimed, {"state": "completed", "size_bytes": 10})]) == 1
    assert await items.settle("a", [(claimed, {"state": "failed"})]) == 0
    counts, size_bytes = await items.counts("job-001")
    assert (counts["completed"], size_bytes) == (1, 10)


async def test_a_settled_item_keeps_what_it_was_and_gains_what_came_of_it(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(1)])
    (claimed,) = await items.claim("job-001", limit=1, holder="a", now_ms=1, until_ms=100, without=())
    await items.settle("a", [(claimed, {"state": "pending", "reason": "http-500", "not_before_ms": 0})])
    (again,) = await items.claim("job-001", limit=1, holder="b", now_ms=2, until_ms=100, without=())
    assert (again.attempts, again.reason) == (2, "http-500")
    await items.settle("b", [(again, {"state": "completed", "reason": None, "size_bytes": 10, "sha256": "ab"})])
    (found,) = await items.page("job-001", ItemFilter(), after=None, limit=2)
    expected = {"attempts": 2, "size_bytes": 10, "sha256": "ab", "updated_at_ms": found.updated_at_ms}
    assert found == replace(item(1), state=ItemState.COMPLETED, **expected)
    assert await items.held("a") == await items.held("b") == set()


async def test_a_lease_that_ran_out_frees_its_items_and_a_renewed_one_does_not(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(1), item(2, job_id="job-002")])
    (claimed,) = await items.claim("job-001", limit=1, holder="dead", now_ms=1, until_ms=100, without=())
    await items.claim("job-002", limit=1, holder="alive", now_ms=1, until_ms=100, without=())
    await items.renew("alive", until_ms=300)
    assert await items.expire(200) == {"job-001"}
    assert await items.settle("dead", [(claimed, {"state": "completed"})]) == 0
    again = await items.claim("job-001", limit=1, holder="alive", now_ms=200, until_ms=300, without=())
    assert [claimed.attempts for claimed in again] == [2]


async def test_items_given_back_do_not_count_the_attempt(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(1)])
    await items.claim("job-001", limit=1, holder="a", now_ms=1, until_ms=100, without=())
    await items.give_back("a", ["job-001:00001"], ItemState.PENDING, now_ms=2)
    again = await items.claim("job-001", limit=1, holder="b", now_ms=3, until_ms=100, without=())
    assert [claimed.attempts for claimed in again] == [1]


async def test_items_are_tallied_by_state_and_domain(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(1), item(2), item(3, domain="b.example"), item(9, job_id="job-009")])
    taken = await items.claim("job-001", limit=9, holder="a", now_ms=1, until_ms=100, without=())
    outcomes = {
        "job-001:00001": {"state": "completed", "size_bytes": 5},
        "job-001:00003": {"state": "failed", "reason": "http-404"},
    }
    await items.settle("a", [(claimed, outcomes[claimed.id]) for claimed in taken if claimed.id in outcomes])
    tallies = [(row.domain, row.items, row.size_bytes) for row in await items.domains("job-001")]
    assert tallies == [("a.example", {"downloading": 1, "completed": 1}, 5), ("b.example", {"failed": 1}, 0)]
    assert await items.has_open("job-001")
    assert await items.ended_since("job-001", store.now_ms() - 60_000) == 2
    page = await items.page("job-001", ItemFilter(reason="http-404"), after=None, limit=5)
    assert [found.id for found in page] == ["job-001:00003"]


async def test_items_are_paged_by_id_and_moved_and_deleted_together(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(number) for number in range(10)])
    first = await items.page("job-001", ItemFilter(), after=None, limit=4)
    rest = await items.page("job-001", ItemFilter(state=ItemState.PENDING), after=first[-1].id, limit=40)
    assert [found.document_id for found in [*first, *rest]] == [str(number) for number in range(10)]
    await items.move("job-001", ItemState.PENDING, ItemState.CANCELLED, now_ms=5)
    assert not await items.has_open("job-001")
    await items.delete_of("job-001")
    assert await items.page("job-001", ItemFilter(), after=None, limit=1) == []


async def test_a_file_is_known_by_its_path_and_metadata_by_its_folder(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(1)])
    (claimed,) = await items.claim("job-001", limit=1, holder="a", now_ms=1, until_ms=100, without=())
    path = "shop/products/1-image/original/img_001.jpg"
    await items.settle("a", [(claimed, {"state": "completed", "path": path})])
    assert await items.with_file("job-001", path)
    assert await items.with_file("job-001", "shop/products/1-image/metadata.json")
    assert not await items.with_file("job-002", path)
    assert not await items.with_file("job-001", "shop/products/2-image/metadata.json")


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
    first = await inbox.dead_letters(after=None, limit=1)
    rest = await inbox.dead_letters(after=first[0]["id"], limit=10)
    assert [row["body"] for row in [*first, *rest]] == [b"\x00\xff0", b"\x00\xff1", b"\x00\xff2"]
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


async def test_failures_are_told_by_domain_and_reason_and_retried_by_class(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(number, domain="a.example" if number < 4 else "b.example") for number in range(6)])
    taken = await items.claim("job-001", limit=9, holder="a", now_ms=1, until_ms=100, without=())
    reasons = ["http-404", "http-404", "http-500", None, "http-404", "not-a-picture"]
    classes = {"http-404": "client", "http-500": "server", "not-a-picture": "content"}
    outcomes = {
        f"job-001:{number:05d}": {"state": "failed" if reason else "completed", "reason": reason}
        | {"error_class": classes.get(reason or "")}
        for number, reason in enumerate(reasons)
    }
    await items.settle("a", [(claimed, outcomes[claimed.id]) for claimed in taken])
    assert [(row.domain, row.reasons) for row in await items.failures("job-001")] == [
        ("a.example", {"http-404": 2, "http-500": 1}),
        ("b.example", {"http-404": 1, "not-a-picture": 1}),
    ]
    only = ItemFilter(error_class="client", domain="a.example")
    assert len(await items.page("job-001", only, after=None, limit=9)) == 2
    assert len(await items.page("job-001", ItemFilter(document_id="5"), after=None, limit=9)) == 1
    await items.move("job-001", ItemState.FAILED, ItemState.PENDING, now_ms=5, only=only)
    counts, _ = await items.counts("job-001")
    assert (counts["pending"], counts["failed"], counts["completed"]) == (2, 3, 1)


async def test_what_was_made_of_a_picture_is_a_file_of_its_job(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(1)])
    assert await items.with_file("job-001", "shop/products/1-image/processed/img_001-thumbnail-64.jpg")
    for path in ("shop/products/1-image/processed/img_002-x.jpg", "shop/products/1-image/processed/a/img_001-x.jpg"):
        assert not await items.with_file("job-001", path)
