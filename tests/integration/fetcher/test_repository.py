"""The contract of the job store, on every MongoDB-compatible engine at hand: jobs and their items."""

import asyncio
from dataclasses import replace

from services.fetcher.domain import names
from services.fetcher.domain.jobs import ItemState, JobState
from services.fetcher.models import Item, ItemFilter
from services.fetcher.repository import (
    MongoItems,
    MongoJobs,
    MongoStore,
)
from tests.integration.fetcher.records import event, item, job


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


async def test_jobs_whose_items_workers_may_have_are_found(store: MongoStore) -> None:
    jobs = MongoJobs(store)
    states = (JobState.PENDING, JobState.RUNNING, JobState.PAUSED, JobState.COMPLETED, JobState.DELETED)
    for number, state in enumerate(states, start=1):
        await jobs.add(job(number, state=state), event(f"job-{number:03d}"))
    for number, state in ((6, JobState.CANCELLED), (7, JobState.FAILED), (8, JobState.COMPLETED)):
        await jobs.add(job(number, state=state, finished_at_ms=500), event(f"job-{number:03d}"))
    names = {limit: {found.id for found in await jobs.unsettled(ended_since_ms=limit)} for limit in (499, 500)}
    assert names == {499: {"job-002", "job-003", "job-006", "job-007"}, 500: {"job-002", "job-003"}}


async def test_truth_values_that_were_changed_come_back_as_such(store: MongoStore) -> None:
    jobs = MongoJobs(store)
    await jobs.add(job(), event("job-001"))
    assert await jobs.claim_planning("job-001", holder="a", now_ms=100, until_ms=200)
    assert await jobs.note_planning("job-001", holder="a", conditional=False, planned=True)
    found = await jobs.get("job-001")
    assert found is not None
    assert (found.conditional, found.planned) == (False, True)
    assert [type(found.conditional), type(found.planned)] == [bool, bool]


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
    assert await items.held("a", ["job-001"]) == await items.held("b", ["job-001"]) == set()


async def test_a_lease_that_ran_out_frees_its_items_and_a_renewed_one_does_not(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([item(1), item(1, job_id="job-002")])
    (claimed,) = await items.claim("job-001", limit=1, holder="dead", now_ms=1, until_ms=100, without=())
    await items.claim("job-002", limit=1, holder="alive", now_ms=1, until_ms=100, without=())
    await items.renew("alive", ["job-001", "job-002"], until_ms=300)
    assert await items.held("alive", ["job-001", "job-002"]) == {"job-002:00001"}
    assert [await items.expire(job_id, 200) for job_id in ("job-001", "job-002")] == [True, False]
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
    assert await items.counts_if_ended("job-001") is None
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
    counts = await items.counts_if_ended("job-001")
    assert counts is not None
    assert counts["cancelled"] == 10
    await items.delete_of("job-001")
    assert await items.page("job-001", ItemFilter(), after=None, limit=1) == []


def in_its_folder(number: int) -> Item:
    """An item with the id that planning gives it."""
    plain = item(number)
    return replace(plain, id=names.item_id(plain.job_id, plain.folder, "int", plain.position))


async def test_a_file_is_known_by_its_path_and_metadata_by_its_folder(store: MongoStore) -> None:
    items = MongoItems(store)
    await items.add([in_its_folder(1)])
    (claimed,) = await items.claim("job-001", limit=1, holder="a", now_ms=1, until_ms=100, without=())
    path = "shop/products/1-image/original/img_001.jpg"
    await items.settle("a", [(claimed, {"state": "completed", "path": path})])
    assert await items.with_file("job-001", path)
    assert await items.with_file("job-001", "shop/products/1-image/metadata.json")
    assert not await items.with_file("job-002", path)
    assert not await items.with_file("job-001", "shop/products/2-image/metadata.json")


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
    await items.add([in_its_folder(1)])
    assert await items.with_file("job-001", "shop/products/1-image/processed/img_001-thumbnail-64.jpg")
    for path in ("shop/products/1-image/processed/img_002-x.jpg", "shop/products/1-image/processed/a/img_001-x.jpg"):
        assert not await items.with_file("job-001", path)
