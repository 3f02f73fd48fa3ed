"""The job store in MongoDB, through motor; the only room that knows motor besides the source adapter."""

from services.fetcher.repository import indexes
from services.fetcher.repository.accounts import MongoAccounts
from services.fetcher.repository.connection import MongoStore
from services.fetcher.repository.idempotency import MongoIdempotencyStore
from services.fetcher.repository.inbox import MongoInbox
from services.fetcher.repository.items import MongoItems
from services.fetcher.repository.jobs import MongoJobs
from services.fetcher.repository.outbox import MongoOutboxStore
from services.fetcher.repository.permits import MongoDomains, MongoPermits

__all__ = [
    "MongoAccounts",
    "MongoDomains",
    "MongoIdempotencyStore",
    "MongoInbox",
    "MongoItems",
    "MongoJobs",
    "MongoOutboxStore",
    "MongoPermits",
    "MongoStore",
    "indexes",
]
