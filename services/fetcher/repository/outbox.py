"""The outbox inside the job documents: events wait as `event_<version>` fields of the job they tell of."""

from pymongo.errors import DuplicateKeyError

from libs.common.events import Event
from libs.common.ids import uuid7
from libs.common.outbox import Pending, PublishBatch
from services.fetcher.errors import job_store_errors
from services.fetcher.repository.connection import MongoStore
from services.fetcher.repository.jobs import EVENT_FIELD

_LEASE = "outbox-relay"
_LEASE_MS = 30_000


class MongoOutboxStore:
    """Implements `libs.common.outbox.OutboxStore`; one relay at a time works, under a lease, to keep the order."""

    def __init__(self, store: MongoStore) -> None:
        self._store = store
        self._jobs = store.database["jobs"]
        self._leases = store.database["leases"]
        self._holder = uuid7().hex

    async def relay_batch(self, publish: PublishBatch, limit: int) -> int:
        with job_store_errors():
            documents = await self._jobs.find({"outbox_waiting": {"$gt": 0}}).limit(limit).to_list(limit)
            if not documents or not await self._alone():
                return 0
            batch = [
                Pending(f"{document['_id']}/{name}", Event.from_json(document[name].encode()))
                for document in documents
                for name in sorted(name for name in document if name.startswith(EVENT_FIELD))
            ]
        done = await publish(batch)
        with job_store_errors():
            for key in done:
                job_id, _, name = str(key).partition("/")
                await self._jobs.update_one(
                    {"_id": job_id, name: {"$exists": True}}, {"$unset": {name: ""}, "$inc": {"outbox_waiting": -1}}
                )
        return len(done)

    async def close(self) -> None:
        """Nothing to let go: the lease ends by itself."""

    async def sweep(self) -> None:
        """Nothing to forget: an event's field goes when it is published."""

    async def lag(self) -> tuple[int, float]:
        with job_store_errors():
            documents = await self._jobs.find(
                {"outbox_waiting": {"$gt": 0}}, {"outbox_waiting": 1, "outbox_since_ms": 1}
            ).to_list(None)
        waiting = sum(document["outbox_waiting"] for document in documents)
        oldest_ms = min((document["outbox_since_ms"] for document in documents), default=self._store.now_ms())
        return waiting, max(0.0, (self._store.now_ms() - oldest_ms) / 1000)

    async def _alone(self) -> bool:
        """Take or keep the relay's lease."""
        now_ms = self._store.now_ms()
        lease = {"holder": self._holder, "until_ms": now_ms + _LEASE_MS}
        for condition in ({"holder": self._holder}, {"until_ms": {"$lt": now_ms}}):
            if (await self._leases.update_one({"_id": _LEASE, **condition}, {"$set": lease})).matched_count:
                return True
        try:
            await self._leases.insert_one({"_id": _LEASE, **lease})
        except DuplicateKeyError:
            return False
        return True
