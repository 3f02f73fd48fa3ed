"""Permits and troubled domains in MongoDB: one flat document each, taken by its id under a guard."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pymongo import ReplaceOne, UpdateOne
from pymongo.errors import BulkWriteError

from libs.common.ids import uuid7
from services.fetcher.domain.troubles import DomainState
from services.fetcher.errors import job_store_errors
from services.fetcher.models import Permit
from services.fetcher.repository.connection import MongoStore, equal

_DUPLICATE_KEY = 11000
_MOST_DOMAINS = 10_000
_KEPT_MS = 3_600_000


class MongoPermits:
    """Implements `ports.PermitRepository`."""

    def __init__(self, store: MongoStore) -> None:
        self._permits = store.database["permits"]

    async def take(
        self, holder: str, wanted: Mapping[str, Sequence[int]], *, now_ms: int, until_ms: int
    ) -> list[Permit]:
        claim = uuid7().hex
        ours = {"holder": holder, "until_ms": until_ms, "claim": claim, "wanted": False}
        permits = {permit.id: permit for permit in (Permit(name, n) for name in wanted for n in wanted[name])}
        if not permits:
            return []
        with job_store_errors():
            found = await self._permits.find({"_id": {"$in": list(permits)}}, {"until_ms": 1}).to_list(None)
            free = [document["_id"] for document in found if document["until_ms"] <= now_ms]
            if free:
                await self._permits.update_many({"_id": {"$in": free}, "until_ms": {"$lte": now_ms}}, {"$set": ours})
            new = permits.keys() - {document["_id"] for document in found}
            if new:
                await self._insert(
                    [{"_id": name, "domain": permits[name].domain, "free_at_ms": 0, **ours} for name in sorted(new)]
                )
            taken = await self._permits.find({"claim": claim}).to_list(None)
        return [_permit(document) for document in taken]

    async def holders(self, domains: Collection[str], *, now_ms: int) -> dict[str, dict[int, str]]:
        with job_store_errors():
            documents = await self._permits.find({"domain": {"$in": list(domains)}}).to_list(None)
        found: dict[str, dict[int, str]] = {}
        for document in documents:
            if document["until_ms"] > now_ms and document["holder"]:
                found.setdefault(document["domain"], {})[_permit(document).number] = document["holder"]
        return found

    async def renew(self, holder: str, *, now_ms: int, until_ms: int) -> list[Permit]:
        with job_store_errors():
            await self._permits.update_many(
                {**equal(holder=holder), "until_ms": {"$gt": now_ms}}, {"$set": {"until_ms": until_ms}}
            )
            documents = await self._permits.find(equal(holder=holder, until_ms=until_ms)).to_list(None)
        return [_permit(document) for document in documents]

    async def ask(self, permits: Collection[Permit]) -> None:
        if permits:
            with job_store_errors():
                await self._permits.update_many(
                    {"_id": {"$in": [permit.id for permit in permits]}}, {"$set": {"wanted": True}}
                )

    async def release(self, holder: str, permits: Collection[Permit], *, now_ms: int) -> None:
        done = [permit.id for permit in permits if permit.free_at_ms <= now_ms]
        paced = [
            UpdateOne(
                {"_id": permit.id, "holder": holder},
                {"$set": {"holder": None, "claim": None, "until_ms": permit.free_at_ms, "wanted": False}},
            )
            for permit in permits
            if permit.free_at_ms > now_ms
        ]
        with job_store_errors():
            if done:
                await self._permits.delete_many({"_id": {"$in": done}, "holder": holder})
            if paced:
                await self._permits.bulk_write(paced, ordered=False)

    async def sweep(self, now_ms: int) -> None:
        with job_store_errors():
            await self._permits.delete_many({"until_ms": {"$lt": now_ms - _KEPT_MS}})

    async def _insert(self, documents: Sequence[dict[str, Any]]) -> None:
        try:
            await self._permits.insert_many(documents, ordered=False)
        except BulkWriteError as error:  # another holder was faster with some of them
            if any(failure.get("code") != _DUPLICATE_KEY for failure in error.details.get("writeErrors", ())):
                raise


class MongoDomains:
    """Implements `ports.DomainRepository`."""

    def __init__(self, store: MongoStore) -> None:
        self._domains = store.database["domains"]

    async def in_trouble(self) -> list[DomainState]:
        with job_store_errors():
            documents = await self._domains.find({}).limit(_MOST_DOMAINS).to_list(_MOST_DOMAINS)
        return [
            DomainState(
                domain=document["_id"],
                width=document["width"],
                blocked_until_ms=document["blocked_until_ms"],
                trips=document["trips"],
                dead_until_ms=document["dead_until_ms"],
            )
            for document in documents
        ]

    async def note(self, state: DomainState) -> None:
        document = {
            "_id": state.domain,
            "width": state.width,
            "blocked_until_ms": state.blocked_until_ms,
            "trips": state.trips,
            "dead_until_ms": state.dead_until_ms,
        }
        with job_store_errors():
            await self._domains.bulk_write([ReplaceOne({"_id": state.domain}, document, upsert=True)])

    async def forget(self, domains: Collection[str]) -> None:
        if domains:
            with job_store_errors():
                await self._domains.delete_many({"_id": {"$in": list(domains)}})

    async def sweep(self, now_ms: int) -> None:
        past = {"$lt": now_ms - _KEPT_MS}
        with job_store_errors():
            await self._domains.delete_many({"blocked_until_ms": past, "dead_until_ms": past})


def _permit(document: Mapping[str, Any]) -> Permit:
    number = int(str(document["_id"]).rpartition("#")[2])
    return Permit(document["domain"], number, document["free_at_ms"], bool(document.get("wanted")))
