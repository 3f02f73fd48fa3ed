"""The fetcher's slow work: jobs are planned into items, items are downloaded, checked and stored."""

from services.fetcher.operations.committer import Committer
from services.fetcher.operations.job_lease import JobLease
from services.fetcher.operations.planner import Planner
from services.fetcher.operations.politeness import Politeness
from services.fetcher.operations.purger import Purger
from services.fetcher.operations.runner import JobRunner
from services.fetcher.operations.scheduler import Rules, Scheduler
from services.fetcher.operations.worker import ItemWorker
from services.fetcher.operations.write_back import WriteBack

__all__ = [
    "Committer",
    "ItemWorker",
    "JobLease",
    "JobRunner",
    "Planner",
    "Politeness",
    "Purger",
    "Rules",
    "Scheduler",
    "WriteBack",
]
