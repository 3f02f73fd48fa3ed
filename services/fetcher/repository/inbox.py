"""The inbox and the dead letters in MongoDB: the id of a handled event is unique."""

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from pymongo.errors import DuplicateKeyError

from libs.common.bus.protocol import Bus, DeadLetter, TransientFailure
from libs.common.errors import TelarError, Unavailable
from libs.common.events import Event
from libs.common.ids import uuid7
from libs.common.inbox import DeadLetterNotFound
from services.fetcher.errors import job_store_errors
from services.fetcher.repository.connection import MongoStore

Handler = Callable[[Event], Awaitable[None]]
"""Handles one event; must be idempotent, for a crash before its inbox document is written brings the event again."""

_KEPT_MS = 30 * 86_400_000

_log = structlog.get_logger()


class MongoInbox:
    """Consumes the fetcher's queue: `handlers` maps an event type to its handler."""

    def __init__(self, service: str, bus: Bus, store: MongoStore, handlers: Mapping[str, Handler]) -> None:
        self._service = service
        self._bus = bus
        self._store = store
        self._handlers = handlers
        self._inbox = store.database["inbox"]
        self._letters = store.database["dead_letters"]

    async def start(self) -> None:
        await self._bus.subscribe(self._service, tuple(self._handlers), self.handle, self.keep_dead)

    async def handle(self, event: Event) -> None:
        """Handle an event unless it was handled before; a database that is away is a TransientFailure."""
        handler = self._handlers.get(event.type)
        if handler is None:  # an old binding may linger on the broker after an upgrade
            _log.warning("event_without_handler", type=event.type, id=event.id)
            return
        try:
            with job_store_errors():
                if await self._inbox.find_one({"_id": event.id}) is not None:
                    _log.info("event_seen_before", type=event.type, id=event.id)
                    return
                await handler(event)
                await self._inbox.insert_one({"_id": event.id, "handled_at_ms": self._store.now_ms()})
        except DuplicateKeyError:
            _log.info("event_seen_before", type=event.type, id=event.id)
        except Unavailable as error:
            raise TransientFailure(error.slug) from error

    async def keep_dead(self, letter: DeadLetter) -> None:
        """Store a message that could not be handled, for an admin to see and replay."""
        document = {
            "_id": str(uuid7()),
            "queue": letter.queue,
            "body_base64": base64.b64encode(letter.body).decode(),
            "reason": letter.reason[:2000],
            "deliveries": letter.deliveries,
            "failed_at_ms": int(letter.failed_at.timestamp() * 1000),
        }
        with job_store_errors():
            await self._letters.insert_one(document)
        _log.error("event_dead", queue=letter.queue, reason=letter.reason[:200], deliveries=letter.deliveries)

    async def dead_letters(self, *, before: UUID | None, limit: int) -> Sequence[Mapping[str, Any]]:
        """List kept dead letters, newest first, older than the given id."""
        query = {"_id": {"$lt": str(before)}} if before is not None else {}
        with job_store_errors():
            documents = await self._letters.find(query).sort("_id", -1).limit(limit).to_list(limit)
        return [
            {
                "id": UUID(document["_id"]),
                "queue": document["queue"],
                "body": base64.b64decode(document["body_base64"]),
                "reason": document["reason"],
                "deliveries": document["deliveries"],
                "failed_at": datetime.fromtimestamp(document["failed_at_ms"] / 1000, UTC),
            }
            for document in documents
        ]

    async def count_dead_letters(self) -> int:
        with job_store_errors():
            count: int = await self._letters.count_documents({})
        return count

    async def replay(self, letter_id: UUID) -> None:
        """Put a dead letter back into the service's queue and forget it; raises DeadLetterNotFound."""
        with job_store_errors():
            document = await self._letters.find_one({"_id": str(letter_id)})
        if document is None:
            raise self._not_found(letter_id)
        try:
            await self._bus.redeliver(self._service, base64.b64decode(document["body_base64"]))
        except TelarError as error:
            raise Unavailable(f"The bus did not take the message: {error.detail}", retry_after_s=5) from error
        await self.discard(letter_id)

    async def discard(self, letter_id: UUID) -> None:
        """Forget a dead letter for good; raises DeadLetterNotFound."""
        with job_store_errors():
            result = await self._letters.delete_one({"_id": str(letter_id)})
        if not result.deleted_count:
            raise self._not_found(letter_id)

    async def sweep(self) -> None:
        """Forget inbox documents older than 30 days: no broker redelivers that late."""
        with job_store_errors():
            await self._inbox.delete_many({"handled_at_ms": {"$lt": self._store.now_ms() - _KEPT_MS}})

    def _not_found(self, letter_id: UUID) -> DeadLetterNotFound:
        return DeadLetterNotFound(f"There is no dead letter {letter_id} in {self._service}")
