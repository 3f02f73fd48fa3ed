"""Items in MongoDB: taken in batches by id under a guard, ended only by their holder."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pymongo import ReplaceOne
from pymongo.errors import BulkWriteError

from services.fetcher.domain import names
from services.fetcher.domain.jobs import OPEN_ITEMS, ItemState
from services.fetcher.errors import job_store_errors
from services.fetcher.models import DomainFailures, DomainTally, Item, ItemFilter
from services.fetcher.repository.connection import MongoStore, equal

_DUPLICATE_KEY = 11000
_PROCESSED = re.compile(r"(.+)/processed/img_(\d{3})-[^/]+")
_ENDED = [state.value for state in ItemState if state not in OPEN_ITEMS]
_FREE = {"lease_holder": None, "lease_until_ms": 0}


class MongoItems:
    """Implements `ports.ItemRepository`."""

    def __init__(self, store: MongoStore) -> None:
        self._store = store
        self._items = store.database["items"]

    async def add(self, items: Sequence[Item]) -> None:
        if not items:
            return
        try:
            with job_store_errors():
                await self._items.insert_many([item.to_document() for item in items], ordered=False)
        except BulkWriteError as error:
            if any(failure.get("code") != _DUPLICATE_KEY for failure in error.details.get("writeErrors", ())):
                raise

    async def claim(
        self, job_id: str, *, limit: int, holder: str, now_ms: int, until_ms: int, without: Collection[str]
    ) -> list[Item]:
        query = {**equal(job_id=job_id, state=ItemState.PENDING.value), "not_before_ms": {"$lte": now_ms}}
        if without:
            query["domain"] = {"$nin": sorted(without)} if len(without) > 1 else {"$ne": next(iter(without))}
        with job_store_errors():
            due = await self._items.find(query).limit(limit).batch_size(limit).to_list(limit)
            if not due:
                return []
            ids = {"_id": {"$in": [document["_id"] for document in due]}}
            claimed = await self._items.update_many(
                {**ids, **equal(state=ItemState.PENDING.value)},
                {
                    "$set": {
                        "state": ItemState.DOWNLOADING.value,
                        "lease_holder": holder,
                        "lease_until_ms": until_ms,
                    },
                    "$inc": {"attempts": 1},
                },
            )
            if claimed.modified_count == len(due):  # nobody else took one in between
                return [_as_claimed(document) for document in due]
            taken = await self._items.find({**ids, **_held_by(holder)}).to_list(limit)
        return [Item.from_document(document) for document in taken]

    async def renew(self, holder: str, job_ids: Collection[str], *, until_ms: int) -> None:
        with job_store_errors():
            for job_id in job_ids:
                held = {**equal(job_id=job_id), **_held_by(holder)}
                await self._items.update_many(held, {"$set": {"lease_until_ms": until_ms}})

    async def settle(self, holder: str, outcomes: Sequence[tuple[Item, Mapping[str, Any]]]) -> int:
        """Whole documents: nobody but the holder changes them, and setting twenty fields costs twice as much."""
        if not outcomes:
            return 0
        now_ms = self._store.now_ms()
        replacements = [
            ReplaceOne({"_id": item.id, **_held_by(holder)}, item.to_document({**changes, "updated_at_ms": now_ms}))
            for item, changes in outcomes
        ]
        with job_store_errors():
            result = await self._items.bulk_write(replacements, ordered=False)
        return int(result.matched_count)

    async def give_back(self, holder: str, ids: Collection[str], state: ItemState, *, now_ms: int) -> None:
        if not ids:
            return
        with job_store_errors():
            await self._items.update_many(
                {"_id": {"$in": list(ids)}, **_held_by(holder)},
                {"$set": {**_FREE, "state": state.value, "updated_at_ms": now_ms}, "$inc": {"attempts": -1}},
            )

    async def held(self, holder: str, job_ids: Collection[str]) -> set[str]:
        found: set[str] = set()
        with job_store_errors():
            for job_id in job_ids:
                held = {**equal(job_id=job_id), **_held_by(holder)}
                found |= {document["_id"] for document in await self._items.find(held, {"_id": 1}).to_list(None)}
        return found

    async def expire(self, job_id: str, now_ms: int) -> bool:
        lost = {**equal(job_id=job_id, state=ItemState.DOWNLOADING.value), "lease_until_ms": {"$lt": now_ms}}
        free = {**_FREE, "state": ItemState.PENDING.value, "updated_at_ms": now_ms}
        with job_store_errors():
            return bool((await self._items.update_many(lost, {"$set": free})).modified_count)

    async def move(
        self, job_id: str, state: ItemState, to: ItemState, *, now_ms: int, only: ItemFilter | None = None
    ) -> None:
        changes = {**_FREE, "state": to.value, "attempts": 0, "not_before_ms": 0, "updated_at_ms": now_ms}
        if to is ItemState.CANCELLED:
            del changes["attempts"]
        query = {**_only(only), **equal(job_id=job_id, state=state.value)}
        with job_store_errors():
            await self._items.update_many(query, {"$set": changes})

    async def counts_if_ended(self, job_id: str) -> dict[str, int] | None:
        """A query sees items change state under it, so that «none is open» is believed only if all have ended."""
        with job_store_errors():
            for state in OPEN_ITEMS:
                if await self._items.find_one(equal(job_id=job_id, state=state.value), {"_id": 1}):
                    return None
        counts, _ = await self.counts(job_id)
        ended = sum(counts[state] for state in _ENDED)
        all_items = sum(int(row["items"]) for row in await self._grouped(equal(job_id=job_id), "job_id"))
        return counts if ended >= all_items else None

    async def counts(self, job_id: str) -> tuple[dict[str, int], int]:
        rows = await self._grouped(equal(job_id=job_id), "state")
        counts = {state.value: 0 for state in ItemState} | {row["_id"]: row["items"] for row in rows}
        return counts, sum(row["size_bytes"] for row in rows)

    async def domains(self, job_id: str) -> list[DomainTally]:
        """One grouping per state: not every server groups by two fields at once."""
        items: dict[str, dict[str, int]] = {}
        size_bytes: dict[str, int] = {}
        for state in ItemState:
            for row in await self._grouped(equal(job_id=job_id, state=state.value), "domain"):
                items.setdefault(row["_id"], {})[state.value] = row["items"]
                size_bytes[row["_id"]] = size_bytes.get(row["_id"], 0) + row["size_bytes"]
        tallies = [DomainTally(domain, counts, size_bytes[domain]) for domain, counts in items.items()]
        return sorted(tallies, key=lambda tally: (-sum(tally.items.values()), tally.domain))

    async def ended_since(self, job_id: str, since_ms: int) -> int:
        """By grouping, which every server counts by its index; one for each state, for the same reason."""
        recent = {**equal(job_id=job_id), "updated_at_ms": {"$gte": since_ms}}
        ended = [ItemState.COMPLETED.value, ItemState.FAILED.value]
        rows = [row for state in ended for row in await self._grouped({**recent, **equal(state=state)}, "state")]
        return sum(row["items"] for row in rows)

    async def failures(self, job_id: str) -> list[DomainFailures]:
        """One grouping per reason: not every server groups by two fields at once."""
        failed = equal(job_id=job_id, state=ItemState.FAILED.value)
        found: dict[str, dict[str, int]] = {}
        for by_reason in await self._grouped(failed, "reason"):
            for row in await self._grouped({**failed, **equal(reason=by_reason["_id"])}, "domain"):
                found.setdefault(row["_id"], {})[by_reason["_id"]] = row["items"]
        failures = [DomainFailures(domain, reasons) for domain, reasons in found.items()]
        return sorted(failures, key=lambda row: (-sum(row.reasons.values()), row.domain))

    async def page(self, job_id: str, only: ItemFilter, *, after: str | None, limit: int) -> list[Item]:
        query = {**equal(job_id=job_id), **_only(only)}
        if after is not None:
            query["key"] = {"$gt": after}
        with job_store_errors():
            documents = await self._items.find(query).sort("key", 1).limit(limit).to_list(limit)
        return [Item.from_document(document) for document in documents]

    async def with_file(self, job_id: str, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        folder, which = parent.removesuffix("/original"), equal(path=path)
        if name == "metadata.json":
            folder, which = parent, {}
        elif (made := _PROCESSED.fullmatch(path)) is not None:
            folder, which = made[1], equal(position=int(made[2]))
        prefix = names.items_prefix(job_id, folder)
        keys = {"key": {"$gt": prefix, "$lt": f"{prefix}~"}}  # behind the digits that follow
        with job_store_errors():
            return await self._items.find_one({**equal(job_id=job_id), **keys, **which}, {"_id": 1}) is not None

    async def delete_of(self, job_id: str) -> None:
        with job_store_errors():
            await self._items.delete_many(equal(job_id=job_id))

    async def _grouped(self, query: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
        group = {"_id": f"${field}", "items": {"$sum": 1}, "size_bytes": {"$sum": "$size_bytes"}}
        with job_store_errors():
            rows: list[dict[str, Any]] = await self._items.aggregate([{"$match": query}, {"$group": group}]).to_list(
                None
            )
        return rows


def _as_claimed(document: Mapping[str, Any]) -> Item:
    changes = {"state": ItemState.DOWNLOADING.value, "attempts": document["attempts"] + 1}
    return Item.from_document({**document, **changes})


def _held_by(holder: str) -> dict[str, Any]:
    return equal(state=ItemState.DOWNLOADING.value, lease_holder=holder)


def _only(which: ItemFilter | None) -> dict[str, Any]:
    return equal(**which.given()) if which is not None else {}
