"""How far a job is: counts, bytes, rate and the time it still needs."""

from services.fetcher.domain.jobs import OPEN_ITEMS, JobState
from services.fetcher.models import Job, Progress
from services.fetcher.ports import ItemRepository

WINDOW_MS = 30_000


async def progress_of(job: Job, items: ItemRepository, *, now_ms: int) -> Progress:
    counts, size_bytes = await items.counts(job.id)
    waiting = sum(counts.get(state.value, 0) for state in OPEN_ITEMS)
    ended = counts.get("completed", 0) + counts.get("failed", 0)
    if job.started_at_ms is None:
        return Progress(counts, size_bytes, 0.0, None)
    if job.finished_at_ms is not None:
        return Progress(counts, size_bytes, _rate(ended, job.finished_at_ms - job.started_at_ms), 0.0)
    since_ms = max(job.started_at_ms, now_ms - WINDOW_MS)
    recent = await items.ended_since(job.id, since_ms)
    rate_per_s = _rate(recent, now_ms - since_ms)
    known = job.planned and job.state is JobState.RUNNING and rate_per_s > 0
    return Progress(counts, size_bytes, rate_per_s, round(waiting / rate_per_s, 1) if known else None)


def _rate(items: int, ms: int) -> float:
    return round(items * 1000 / max(ms, 1), 2)
