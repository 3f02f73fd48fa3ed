"""The fetcher's use cases."""

from services.fetcher.service.creation import Allowed, JobCreation, NewJob
from services.fetcher.service.estimate import Estimate, Pace
from services.fetcher.service.jobs import JobService
from services.fetcher.service.lifecycle import Lifecycle
from services.fetcher.service.progress import progress_of

__all__ = [
    "Allowed",
    "Estimate",
    "JobCreation",
    "JobService",
    "Lifecycle",
    "NewJob",
    "Pace",
    "progress_of",
]
