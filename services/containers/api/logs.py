"""Routes of what a stack's services say and use."""

from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from libs.common.auth import CurrentUser
from libs.common.openapi import problems
from services.containers.api.answers import NOT_FOUND
from services.containers.models import Stack
from services.containers.schemas import LogLineOut, StackStats
from services.containers.service import Stacks, Views

Service = Annotated[str | None, Query(max_length=64, description="Of this service alone")]


def add_routes(routes: APIRouter, stacks: Stacks, views: Views) -> None:
    _add_stats(routes, stacks, views)

    async def readable(user: CurrentUser, stack_id: UUID, service: Service = None) -> Stack:
        stack = await stacks.get(user, stack_id)
        await views.require_logs(stack, service)  # now: once the stream has begun no status can tell it any more
        return stack

    @routes.get(
        "/stacks/{stack_id}/logs",
        tags=["stacks"],
        response_class=EventSourceResponse,
        responses=problems(_404=NOT_FOUND, _503="No Docker engine answers, or too many logs are being read"),
    )
    async def stack_logs(
        stack: Annotated[Stack, Depends(readable)],
        *,
        follow: bool = False,
        tail: Annotated[int, Query(ge=0, le=10_000, description="Lines of each service")] = 200,
        service: Service = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """Stream what the stack's services wrote, an event `log` for each line; with `follow` also what they write."""
        async for line in views.logs(stack, tail=tail, follow=follow, service=service):
            yield _event(line)


def _add_stats(routes: APIRouter, stacks: Stacks, views: Views) -> None:
    @routes.get(
        "/stacks/{stack_id}/stats",
        tags=["stacks"],
        responses=problems(_404=NOT_FOUND, _503="No Docker engine answers"),
    )
    async def stack_stats(user: CurrentUser, stack_id: UUID) -> StackStats:
        """What each running service uses now, as the engine measures it within about a second."""
        return await views.stats(await stacks.get(user, stack_id))


def _event(line: LogLineOut) -> ServerSentEvent:
    return ServerSentEvent(data=line, event="log")
