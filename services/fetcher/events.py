"""What the fetcher publishes: a job's life, and with it what its owner owns and uses."""

from typing import ClassVar

from pydantic import Field

from libs.common.quotas import OwnedPayload


class JobPayload(OwnedPayload):
    """`items` counts the job's items by state, once it has any."""

    kind: str
    database: str
    collection: str
    state: str
    items: dict[str, int] = Field(default_factory=dict)
    error: str | None = None


class JobCreated(JobPayload):
    event_type: ClassVar[str] = "fetcher.job.created.v1"


class JobStarted(JobPayload):
    event_type: ClassVar[str] = "fetcher.job.started.v1"


class JobCompleted(JobPayload):
    event_type: ClassVar[str] = "fetcher.job.completed.v1"


class JobFailed(JobPayload):
    event_type: ClassVar[str] = "fetcher.job.failed.v1"


class JobCancelled(JobPayload):
    event_type: ClassVar[str] = "fetcher.job.cancelled.v1"


class JobDeleted(JobPayload):
    event_type: ClassVar[str] = "fetcher.job.deleted.v1"
