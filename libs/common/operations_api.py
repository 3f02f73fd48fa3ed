"""The routes of a service's operations: list, look, follow (SSE), cancel, resume; and the answer of accepted work."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from libs.common.auth import AdminOnly, CurrentUser, Principal, requires_scope
from libs.common.db import Notifications, drain
from libs.common.errors import Unavailable
from libs.common.operations import CHANNEL, Operation, OperationNotFound, Operations, State, StepState
from libs.common.pagination import Page, PageQuery, page

LOOK_AGAIN_S = 5.0
"""How long a stream trusts that no news is no change: a notification may be lost with its connection."""


class ResourceView(BaseModel):
    type: str
    id: str


class StepView(BaseModel):
    name: str
    state: StepState
    attempts: int
    started_at: str | None
    finished_at: str | None


class OperationView(BaseModel):
    """An operation as its owner sees it: no input, no results, no checkpoints, which may hold secrets."""

    id: str
    kind: str
    resource: ResourceView
    owner_id: str
    state: State
    step: str | None
    progress: float
    message: str
    error: dict[str, Any] | None
    attempts: int
    created_at: datetime
    updated_at: datetime
    steps: list[StepView]

    @classmethod
    def of(cls, operation: Operation) -> Self:
        return cls(
            id=operation.id,
            kind=operation.kind,
            resource=ResourceView(type=operation.resource_type, id=operation.resource_id),
            owner_id=operation.owner_id,
            state=operation.state,
            step=operation.step,
            progress=round(operation.progress, 4),
            message=operation.message,
            error=operation.error,
            attempts=operation.attempts,
            created_at=operation.created_at,
            updated_at=operation.updated_at,
            steps=[StepView.model_validate(record, from_attributes=True) for record in operation.steps],
        )


def location(operation: Operation) -> dict[str, str]:
    """The header that tells where accepted work can be followed."""
    return {"location": f"/api/v1/operations/{operation.id}"}


def accepted(operation: Operation, **resources: Any) -> Response:
    """Answer 202 with the operation, its Location, and the resources it works on under their names (JSON values)."""
    content = {**OperationView.of(operation).model_dump(mode="json"), **resources}
    return JSONResponse(content, status_code=202, headers=location(operation))


def operations_router(operations: Operations, notifications: Notifications, *, area: str) -> APIRouter:
    """Make the routes; `notifications` must listen to `operations.CHANNEL`. Another owner's operation is a 404.

    `area` is the service's scope: a key that may not change a machine may not cancel its change either.
    """
    router = APIRouter(prefix="/api/v1/operations", tags=["operations"], dependencies=[requires_scope(area)])

    async def visible(operation_id: str, caller: CurrentUser) -> Operation:
        return await operations.get(operation_id, owner_id=_owner(caller))

    @router.get("")
    async def list_operations(
        request: Request,
        response: Response,
        asked: PageQuery,
        caller: CurrentUser,
        kind: Annotated[str | None, Query(max_length=100)] = None,
        state: State | None = None,
        resource: Annotated[str | None, Query(max_length=300, description="`<type>/<id>`, or an id alone")] = None,
    ) -> Page[OperationView]:
        found = await operations.find(asked, owner_id=_owner(caller), kind=kind, state=state, resource=resource)
        shown, cursor = page(found, asked, position=lambda operation: (operation.id,), http=(request, response))
        return Page(items=[OperationView.of(operation) for operation in shown], next_cursor=cursor)

    @router.get("/{operation_id}")
    async def get_operation(operation: Annotated[Operation, Depends(visible)], response: Response) -> OperationView:
        response.headers["cache-control"] = "no-store"
        return OperationView.of(operation)

    @router.get("/{operation_id}/events", response_class=EventSourceResponse)
    async def follow_operation(operation: Annotated[Operation, Depends(visible)]) -> AsyncIterator[ServerSentEvent]:
        """Stream the operation as it is now, then each change, until it has ended; comments keep the line open."""
        async for view in _changes(operations, notifications, operation.id):
            moment = str(round(view.updated_at.timestamp() * 1_000_000))
            yield ServerSentEvent(data=view, event="operation", id=moment)

    @router.delete("/{operation_id}", responses={202: {"model": OperationView}})
    async def cancel_operation(operation_id: str, caller: CurrentUser, response: Response) -> OperationView:
        """Cancel: 200 when it is cancelled now, 202 when it turns back first, 409 when it cannot be cancelled."""
        operation = await operations.cancel(operation_id, owner_id=_owner(caller))
        if not operation.state.is_final:
            response.status_code = 202
            response.headers.update(location(operation))
        return OperationView.of(operation)

    @router.post("/{operation_id}/resume", status_code=202)
    async def resume_operation(operation_id: str, _admin: AdminOnly, response: Response) -> OperationView:
        """Go on undoing an operation that needs an operator, after its cause was removed."""
        operation = await operations.resume(operation_id)
        response.headers.update(location(operation))
        return OperationView.of(operation)

    return router


def _owner(caller: Principal) -> str | None:
    return None if caller.is_admin else caller.user_id


async def _changes(
    operations: Operations, notifications: Notifications, operation_id: str
) -> AsyncIterator[OperationView]:
    """Every state of an operation that differs from the one before, the final one last; ends if it is forgotten."""
    with notifications.watch(CHANNEL) as queue, contextlib.suppress(OperationNotFound):
        shown: OperationView | None = None
        while True:
            try:
                view = OperationView.of(await operations.get(operation_id))
            except Unavailable:  # the stream outlives a restart of the database
                await asyncio.sleep(1.0)
                continue
            if view != shown:
                shown = view
                yield view
            if view.state.is_final:
                return
            await _heard(queue, operation_id)


async def _heard(queue: asyncio.Queue[str], operation_id: str) -> None:
    """Return when the operation was announced as changed, or when it is time to look anyway."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK_AGAIN_S):
            while operation_id not in await drain(queue, LOOK_AGAIN_S):
                pass
