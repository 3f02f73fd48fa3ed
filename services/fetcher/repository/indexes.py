"""Indexes of the job store, made at `telar migrate` and at start: MongoDB needs no other migrations.

No index holds `_id` beside other fields: not every MongoDB-compatible server can.
"""

from typing import Any

from services.fetcher.errors import job_store_errors

INDEXES: dict[str, tuple[tuple[str, ...], ...]] = {
    "jobs": (("owner_id",), ("state",), ("outbox_waiting",)),
    "items": (("job_id", "key"), ("job_id", "state", "key"), ("job_id", "reason", "key")),
    "slots": (("owner_id",), ("job_id",)),
    "permits": (("domain",), ("holder",), ("claim",)),
    "inbox": (("handled_at_ms",),),
    "idempotency_keys": (("created_at_ms",),),
}


async def create(database: Any) -> None:
    """Make the indexes that are missing."""
    with job_store_errors():
        for collection, indexes in INDEXES.items():
            for names in indexes:
                await database[collection].create_index([(name, 1) for name in names])
