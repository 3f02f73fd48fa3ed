"""Jobs in MongoDB. A change and its event are one update of one document (`event_<version>` fields)."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from libs.common.events import Event
from services.fetcher.domain.jobs import JobState
from services.fetcher.errors import job_store_errors
from services.fetcher.models import Job
from services.fetcher.repository.connection import MongoStore

EVENT_FIELD = "event_"


def event_field(version: int) -> str:
    """The field that holds the event of a version; padded, so that names sort as versions do."""
    return f"{EVENT_FIELD}{version:08d}"


class MongoJobs:
    """Implements `ports.JobRepository`; calls `on_event` when an event was written."""

    def __init__(self, store: MongoStore, *, on_event: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._on_event = on_event
        self._jobs = store.database["jobs"]

    async def add(self, job: Job, event: Event) -> None:
        outbox = {
            event_field(job.version): event.to_json().decode(),
            "outbox_waiting": 1,
            "outbox_since_ms": self._store.now_ms(),
        }
        with job_store_errors():
            await self._jobs.insert_one({**job.to_document(), **outbox, "planner": None, "planner_until_ms": 0})
        self._on_event()

    async def get(self, job_id: str) -> Job | None:
        with job_store_errors():
            document = await self._jobs.find_one({"_id": job_id})
        job = Job.from_document(document) if document else None
        return None if job is None or job.state is JobState.DELETED else job

    async def change(self, job: Job, event: Event | None, **changes: Any) -> Job | None:
        changed = replace(job, **changes, version=job.version + 1, updated_at_ms=self._store.now_ms())
        document = changed.to_document()
        names = {*changes, "version", "updated_at_ms"}
        update: dict[str, Any] = {"$set": {name: document[name] for name in names}}
        if event is not None:
            update["$set"] |= {event_field(changed.version): event.to_json().decode()}
            update["$set"] |= {"outbox_since_ms": self._store.now_ms()}
            update["$inc"] = {"outbox_waiting": 1}
        with job_store_errors():
            result = await self._jobs.update_one({"_id": job.id, "version": job.version}, update)
        if not result.matched_count:
            return None
        if event is not None:
            self._on_event()
        return changed

    async def page(
        self, *, owner_id: str | None, states: Collection[JobState], before: str | None, limit: int
    ) -> list[Job]:
        query: dict[str, Any] = {"state": {"$in": [state.value for state in states]}}
        if owner_id is not None:
            query["owner_id"] = owner_id
        if before is not None:
            query["_id"] = {"$lt": before}
        with job_store_errors():
            documents = await self._jobs.find(query).sort("_id", -1).limit(limit).to_list(limit)
        return [Job.from_document(document) for document in documents]

    async def in_states(self, states: Collection[JobState]) -> list[Job]:
        with job_store_errors():
            query = {"state": {"$in": [state.value for state in states]}}
            documents = await self._jobs.find(query).sort("_id", 1).to_list(None)
        return [Job.from_document(document) for document in documents]

    async def unsettled(self, *, ended_since_ms: int) -> list[Job]:
        ended = [JobState.CANCELLED.value, JobState.FAILED.value]
        with job_store_errors():
            query = {"state": {"$in": ended}, "finished_at_ms": {"$gt": ended_since_ms}}
            documents = await self._jobs.find(query).to_list(None)
        lately = [Job.from_document(document) for document in documents]
        return await self.in_states([JobState.RUNNING, JobState.PAUSED]) + lately

    async def claim_planning(self, job_id: str, *, holder: str, now_ms: int, until_ms: int) -> bool:
        return await self._claim({"_id": job_id, "planned": False}, holder, now_ms, until_ms)

    async def claim(self, job_id: str, *, holder: str, now_ms: int, until_ms: int) -> bool:
        return await self._claim({"_id": job_id}, holder, now_ms, until_ms)

    async def _claim(self, query: Mapping[str, Any], holder: str, now_ms: int, until_ms: int) -> bool:
        lease = {"$set": {"planner": holder, "planner_until_ms": until_ms}}
        free: tuple[dict[str, Any], ...] = ({"planner": holder}, {"planner_until_ms": {"$lt": now_ms}})
        with job_store_errors():
            for condition in free:  # one by one: not every server reads $or beside other fields rightly in an update
                result = await self._jobs.update_one({**query, **condition}, lease)
                if result.matched_count:
                    return True
        return False

    async def note_planning(self, job_id: str, *, holder: str, **changes: Any) -> bool:
        with job_store_errors():
            result = await self._jobs.update_one({"_id": job_id, "planner": holder}, {"$set": changes})
        return bool(result.matched_count)

    async def sweep(self) -> None:
        with job_store_errors():
            await self._jobs.delete_many({"state": JobState.DELETED.value, "outbox_waiting": 0, "purged": True})
