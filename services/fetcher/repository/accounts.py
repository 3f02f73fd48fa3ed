"""Owners' limits and slots in MongoDB: a slot is one document whose id only one job can take."""

from typing import Any

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from libs.common.errors import Forbidden, QuotaExceeded, Unavailable
from libs.common.events import Event
from libs.common.quotas import UNLIMITED, Usage
from services.fetcher.errors import job_store_errors
from services.fetcher.repository.connection import MongoStore

RESOURCE = "fetch_jobs"


class MongoAccounts:
    """Implements `ports.AccountRepository`; `on_user_event` keeps the limits true."""

    def __init__(self, store: MongoStore) -> None:
        self._store = store
        self._accounts = store.database["accounts"]
        self._slots = store.database["slots"]

    async def on_user_event(self, event: Event) -> None:
        """Keep the copy of an account true; an event older than the last seen changes nothing."""
        data: dict[str, Any] = event.data
        changes = {
            "username": data["username"],
            "external_id": data.get("external_id"),
            "limit": int(data["quota"].get(RESOURCE, 0)),
            "disabled": bool(data["disabled"]),
            "deleted": event.type.startswith("auth.user.deleted."),
            "sequence": event.sequence,
        }
        with job_store_errors():
            try:
                await self._accounts.insert_one({"_id": event.subject, **changes, "used_sequence": 0})
            except DuplicateKeyError:
                await self._accounts.update_one(
                    {"_id": event.subject, "sequence": {"$lt": event.sequence}}, {"$set": changes}
                )

    async def reserve(self, owner_id: str, job_id: str) -> Usage:
        with job_store_errors():
            account = await self._accounts.find_one({"_id": owner_id})
            if account is None:
                raise Unavailable(
                    "The account has not reached this service yet; try again in a second", retry_after_s=1
                )
            if account["disabled"] or account["deleted"]:
                raise Forbidden("The account is disabled")
            again = {"$set": {"ending": False, "taken_at_ms": self._store.now_ms()}}
            if not (await self._slots.update_many({"job_id": job_id}, again)).matched_count:
                await self._take(owner_id, job_id, int(account["limit"]))
            return await self._usage(owner_id)

    async def _take(self, owner_id: str, job_id: str, limit: int) -> None:
        """Insert the first free of the owner's numbered slots; the unique id decides between parallel requests."""
        slot = {"owner_id": owner_id, "job_id": job_id, "ending": False, "taken_at_ms": self._store.now_ms()}
        if limit == UNLIMITED:
            await self._slots.insert_one({"_id": f"{owner_id}:{job_id}", **slot})
            return
        held = {document["_id"] for document in await self._slots.find({"owner_id": owner_id}).to_list(None)}
        if len(held) < limit:  # slots taken under a higher or no limit count too
            for number in range(limit):
                name = f"{owner_id}:{number}"
                if name in held:
                    continue
                try:
                    await self._slots.insert_one({"_id": name, **slot})
                except DuplicateKeyError:
                    continue
                return
        raise QuotaExceeded(
            f"{RESOURCE}: {limit} unfinished jobs are allowed at once; cancel one, wait for one to end"
            " or ask an administrator"
        )

    async def begin_release(self, owner_id: str, job_id: str) -> Usage:
        with job_store_errors():
            await self._slots.update_many({"job_id": job_id}, {"$set": {"ending": True}})
            return await self._usage(owner_id)

    async def release(self, job_id: str, *, taken_at_ms: int | None = None) -> None:
        condition = {"ending": True} if taken_at_ms is None else {"taken_at_ms": taken_at_ms}
        with job_store_errors():
            await self._slots.delete_many({"job_id": job_id, **condition})

    async def slots(self) -> list[tuple[str, int]]:
        with job_store_errors():
            documents = await self._slots.find({}).to_list(None)
        return [(document["job_id"], document["taken_at_ms"]) for document in documents]

    async def _usage(self, owner_id: str) -> Usage:
        """Number first, count second: the highest number then always carries a count that saw all lower ones."""
        account = await self._accounts.find_one_and_update(
            {"_id": owner_id}, {"$inc": {"used_sequence": 1}}, return_document=ReturnDocument.AFTER
        )
        used = await self._slots.count_documents({"owner_id": owner_id, "ending": False})
        return Usage(used={RESOURCE: int(used)}, sequence=int(account["used_sequence"]) if account else 0)
