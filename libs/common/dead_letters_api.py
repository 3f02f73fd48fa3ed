"""Routes of dead letters, the same in every service; the gateway shows them together."""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from libs.common.auth import AdminOnly
from libs.common.pagination import MAX_LIMIT, PageRequest, foreign_cursor, page


class DeadLetterStore(Protocol):
    """What an inbox, whatever its database, offers an administrator; see `libs.common.inbox.Inbox`."""

    async def dead_letters(self, *, before: UUID | None, limit: int) -> Sequence[Mapping[Any, Any]]: ...
    async def replay(self, letter_id: UUID) -> None: ...
    async def discard(self, letter_id: UUID) -> None: ...


class DeadLetterOut(BaseModel):
    """A message that could not be handled. `event` is its JSON if it can be read, else `body_base64` holds it."""

    id: UUID
    service: str
    reason: str
    deliveries: int
    failed_at: datetime
    event: dict[str, Any] | None
    body_base64: str | None


class DeadLetters(BaseModel):
    items: list[DeadLetterOut]
    next_cursor: str | None = None


def router(service: str, inbox: DeadLetterStore) -> APIRouter:
    """GET, replay and DELETE of one service's dead letters, for administrators."""
    routes = APIRouter(prefix="/api/v1/dead-letters", tags=["dead letters"])

    @routes.get("")
    async def list_dead_letters(
        request: Request,
        response: Response,
        _admin: AdminOnly,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
        cursor: Annotated[str | None, Query(max_length=1000)] = None,
    ) -> DeadLetters:
        """Newest first."""
        asked = PageRequest(limit=limit, cursor=cursor)
        rows = await inbox.dead_letters(before=_place(asked), limit=limit + 1)
        shown, next_cursor = page(rows, asked, position=lambda row: (str(row["id"]),), http=(request, response))
        items = [
            DeadLetterOut(
                id=row["id"],
                service=service,
                reason=row["reason"],
                deliveries=row["deliveries"],
                failed_at=row["failed_at"],
                **_readable(row["body"]),
            )
            for row in shown
        ]
        return DeadLetters(items=items, next_cursor=next_cursor)

    @routes.post("/{letter_id}/replay", status_code=202)
    async def replay(_admin: AdminOnly, letter_id: UUID) -> dict[str, str]:
        await inbox.replay(letter_id)
        return {"status": "replayed"}

    @routes.delete("/{letter_id}", status_code=204)
    async def discard(_admin: AdminOnly, letter_id: UUID) -> Response:
        await inbox.discard(letter_id)
        return Response(status_code=204)

    return routes


def _place(asked: PageRequest) -> UUID | None:
    """The id of the last letter that was shown; raises Invalid for a cursor that is none of this list's."""
    if asked.after is None:
        return None
    try:
        return UUID(str(asked.after[0]))
    except ValueError as error:
        raise foreign_cursor() from error


def _readable(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body)
    except ValueError:
        event = None
    if isinstance(event, dict):
        return {"event": event, "body_base64": None}
    return {"event": None, "body_base64": base64.b64encode(body).decode()}
