"""Idempotency keys in MongoDB.

Without a transaction over two documents the mark is set just before the change: a crash between the two answers
«the answer was lost» once the lease has run out, and never repeats the change.
"""

import base64
import json

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from libs.common.idempotency import LEASE_S, AnswerLost, IdempotencyKeyReused, StillRunning, Stored
from services.fetcher.errors import job_store_errors
from services.fetcher.repository.connection import MongoStore

_LEASE_MS = LEASE_S * 1000
_KEPT_MS = 86_400_000


class MongoIdempotencyStore:
    """Implements `libs.common.idempotency.IdempotencyStore`."""

    def __init__(self, store: MongoStore) -> None:
        self._store = store
        self._keys = store.database["idempotency_keys"]

    async def begin(self, caller: str, key: str, fingerprint: str) -> Stored | None:
        now_ms = self._store.now_ms()
        name = _name(caller, key)
        lease = {"lease_until_ms": now_ms + _LEASE_MS, "created_at_ms": now_ms}
        with job_store_errors():
            try:
                await self._keys.insert_one({"_id": name, "fingerprint": fingerprint, "state": "running", **lease})
            except DuplicateKeyError:
                pass
            else:
                return None
            expired = {"_id": name, "fingerprint": fingerprint, "state": "running", "lease_until_ms": {"$lt": now_ms}}
            taken = await self._keys.find_one_and_update(expired, {"$set": lease}, return_document=ReturnDocument.AFTER)
            if taken is not None:
                return None
            document = await self._keys.find_one({"_id": name})
        if document is None:
            raise StillRunning("It ended just now; send the request again", retry_after_s=1)
        if document["fingerprint"] != fingerprint:
            raise IdempotencyKeyReused("Make a new key for each different request")
        if document["state"] == "done":
            headers = [(name, value) for name, value in json.loads(document["headers"])]
            return Stored(document["status"], headers, base64.b64decode(document["body_base64"]))
        if document["state"] == "committed" and document["lease_until_ms"] < now_ms:
            raise AnswerLost("Look at the resource's list before you send it again with a new key")
        raise StillRunning("Send the same request again in a moment to get its answer", retry_after_s=1)

    async def renew(self, caller: str, key: str) -> None:
        await self._set(caller, key, {"lease_until_ms": self._store.now_ms() + _LEASE_MS})

    async def finish(self, caller: str, key: str, answer: Stored) -> None:
        body = base64.b64encode(answer.body).decode()
        changes = {"state": "done", "status": answer.status, "headers": json.dumps(answer.headers)}
        await self._set(caller, key, {**changes, "body_base64": body})

    async def forget(self, caller: str, key: str) -> None:
        with job_store_errors():
            await self._keys.delete_one({"_id": _name(caller, key), "state": "running"})

    async def mark(self, session: object, caller: str, key: str) -> None:  # noqa: ARG002 - MongoDB has no session here
        await self._set(caller, key, {"state": "committed"})

    async def sweep(self) -> None:
        """Forget keys after a day."""
        with job_store_errors():
            await self._keys.delete_many({"created_at_ms": {"$lt": self._store.now_ms() - _KEPT_MS}})

    async def _set(self, caller: str, key: str, changes: dict[str, object]) -> None:
        with job_store_errors():
            await self._keys.update_one({"_id": _name(caller, key)}, {"$set": changes})


def _name(caller: str, key: str) -> str:
    return f"{caller}:{key}"
