import pytest

from services.fetcher.domain.jobs import JobState
from services.fetcher.operations import JobLease
from services.fetcher.repository import MongoJobs, MongoStore
from tests.integration.fetcher.records import event, job


@pytest.fixture
def now_ms() -> list[int]:
    """The lease's clock, moved by the tests."""
    return [1_000]


@pytest.fixture
def mine(store: MongoStore, now_ms: list[int]) -> JobLease:
    return JobLease(MongoJobs(store), holder="mine", lease_ms=100, now_ms=lambda: now_ms[0])


@pytest.fixture
def theirs(store: MongoStore, now_ms: list[int]) -> JobLease:
    return JobLease(MongoJobs(store), holder="theirs", lease_ms=100, now_ms=lambda: now_ms[0])


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.DELETED])
async def test_a_lease_that_is_renewed_in_time_stays_and_one_that_is_not_goes_over(
    store: MongoStore, mine: JobLease, theirs: JobLease, now_ms: list[int], state: JobState
) -> None:
    made = job(state=state)
    await MongoJobs(store).add(made, event(made.id))
    assert await mine.take(made)
    now_ms[0] += 90
    assert await mine.renew(made)
    now_ms[0] += 90
    assert not await theirs.take(made)
    now_ms[0] += 90
    assert await theirs.take(made)
    assert not await mine.renew(made)
    assert not await mine.note(made, purged=True)


async def test_a_job_that_was_stopped_meanwhile_is_not_worked_on(store: MongoStore, mine: JobLease) -> None:
    jobs, made = MongoJobs(store), job(state=JobState.RUNNING)
    await jobs.add(made, event(made.id))
    assert await mine.take(made)
    assert await mine.renew_unless_stopped(made, documents=7)
    assert await jobs.change(made, None, state=JobState.PAUSED)
    assert not await mine.renew_unless_stopped(made)
