"""States of jobs and of their items, and which may follow which."""

from collections.abc import Mapping
from enum import StrEnum


class JobKind(StrEnum):
    COLLECTION = "collection"
    DOCUMENT = "document"
    BATCH = "batch"


class Check(StrEnum):
    """How far a body must prove to be a picture."""

    HEADER = "header"
    FULL = "full"


class JobState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DELETED = "deleted"
    """Only a tombstone until its last event has left; no caller sees it."""


class ItemState(StrEnum):
    PENDING = "pending"
    DOWNLOADING = "downloading"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})
UNFINISHED = frozenset({JobState.PENDING, JobState.RUNNING, JobState.PAUSED})
OPEN_ITEMS = frozenset({ItemState.PENDING, ItemState.DOWNLOADING})

_NEXT: Mapping[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.PAUSED, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}),
    JobState.PAUSED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    JobState.COMPLETED: frozenset({JobState.RUNNING, JobState.DELETED}),
    JobState.FAILED: frozenset({JobState.RUNNING, JobState.DELETED}),
    JobState.CANCELLED: frozenset({JobState.DELETED}),
    JobState.DELETED: frozenset(),
}


def may_become(state: JobState, wanted: JobState) -> bool:
    return wanted in _NEXT[state]


def outcome(items: Mapping[str, int]) -> JobState:
    """How a job whose items have all ended ended: it failed only if nothing at all could be fetched."""
    nothing_fetched = items.get(ItemState.COMPLETED, 0) == 0 and items.get(ItemState.FAILED, 0) > 0
    return JobState.FAILED if nothing_fetched else JobState.COMPLETED
