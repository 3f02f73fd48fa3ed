"""Source collections in MongoDB: read only, bounded in time, by rising `_id`."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from bson import ObjectId, json_util
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import OperationFailure

from libs.common.errors import FieldError
from services.fetcher.errors import DocumentIdRefused, DocumentNotFound, SourceNotFound, source_errors

_BATCH = 500
_UNAUTHORIZED = 13
_ANSWER_MS = 10_000


class MongoSource:
    """Implements `ports.SourceCollections` over one server; must be made inside the event loop that uses it."""

    def __init__(self, uri: str, *, max_time_ms: int, timeout_s: float = 5.0) -> None:
        with source_errors():
            self._client: Any = AsyncIOMotorClient(
                uri,
                tz_aware=True,
                appname="telar-fetcher-source",
                serverSelectionTimeoutMS=int(timeout_s * 1000),
                socketTimeoutMS=max_time_ms + _ANSWER_MS,
            )
        self._max_time_ms = max_time_ms

    async def check(self, database: str, collection: str) -> None:
        with source_errors():
            try:
                names = await self._client[database].list_collection_names(maxTimeMS=self._max_time_ms)
            except OperationFailure as error:
                if error.code == _UNAUTHORIZED:  # it may read the collection and not list them
                    return
                raise
        if not names:
            raise SourceNotFound(f"There is no database {database} with collections")
        if collection not in names:
            raise SourceNotFound(f"There is no collection {collection} in the database {database}")

    async def sample(self, database: str, collection: str, query: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
        with source_errors():
            cursor = self._client[database][collection].find(query).limit(size).max_time_ms(self._max_time_ms)
            found: list[dict[str, Any]] = await cursor.to_list(size)
        return found

    async def document_query(self, database: str, collection: str, document_id: str) -> dict[str, Any]:
        """An id as text may be an ObjectId, a number or a text; the one that exists is meant."""
        candidates: list[Any] = [document_id]
        if ObjectId.is_valid(document_id):
            candidates.insert(0, ObjectId(document_id))
        if document_id.lstrip("-").isdecimal() and len(document_id) < 19:  # noqa: PLR2004 - what fits 64 bits
            candidates.append(int(document_id))
        with source_errors():
            for candidate in candidates:
                query = {"_id": candidate}
                cursor = self._client[database][collection].find(query, {"_id": 1})
                if await cursor.limit(1).max_time_ms(self._max_time_ms).to_list(1):
                    return query
            cursor = self._client[database][collection].find({}, {"_id": 1}).limit(1).max_time_ms(self._max_time_ms)
            others = await cursor.to_list(1)
        if others and isinstance(others[0]["_id"], ObjectId) and not ObjectId.is_valid(document_id):
            rule = "the ids of this collection are ObjectIds: 24 hexadecimal digits"
            raise DocumentIdRefused(f"No document can have this id; {rule}", errors=[FieldError("/document_id", rule)])
        raise DocumentNotFound(f"There is no document {document_id[:100]!r} in {database}.{collection}")

    async def write_back(
        self, database: str, collection: str, key: str, *, field: str, mark: str, value: Mapping[str, Any]
    ) -> bool:
        query = {"_id": json_util.loads(key)}
        documents = self._client[database][collection]
        with source_errors():
            for free in ({field: {"$exists": False}}, {f"{field}.by": mark}):  # not every server reads $or rightly here
                if (await documents.update_one({**query, **free}, {"$set": {field: value}})).matched_count:
                    return True
        return False

    async def stream(
        self, database: str, collection: str, query: Mapping[str, Any], *, field: str, limit: int | None
    ) -> AsyncIterator[dict[str, Any]]:
        with source_errors():
            cursor = self._client[database][collection].find(query, {field.partition(".")[0]: 1})
            cursor = cursor.sort("_id", 1).batch_size(_BATCH).max_time_ms(self._max_time_ms)
            async for document in cursor.limit(limit) if limit else cursor:
                yield document

    def close(self) -> None:
        self._client.close()
