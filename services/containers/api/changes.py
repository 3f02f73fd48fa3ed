"""Routes of a stack's revisions: redeploy, roll back, list."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from libs.common.auth import CurrentUser
from libs.common.etag import IfMatch
from libs.common.openapi import problems
from services.containers.adapters.forms import read_form
from services.containers.api.answers import NOT_FOUND, AcceptedStack, accepted_stack, form_body, validated
from services.containers.schemas import RevisionList, StackRedeploy, StackRollback
from services.containers.service import Changes, Stacks, Views
from services.containers.settings import ContainersSettings


def add_routes(routes: APIRouter, stacks: Stacks, changes: Changes, views: Views, settings: ContainersSettings) -> None:
    responses: dict[int | str, dict[str, Any]] = {
        202: {"model": AcceptedStack},
        **problems(
            _404="No such stack or revision, or it is not the caller's",
            _409="The stack's state does not allow it, or the quota would be exceeded",
            _412="The stack has changed",
            _422="A field is wrong, or the compose file is refused",
            _503="No Docker engine answers, or no host port is left",
        ),
    }

    @routes.post(
        "/stacks/{stack_id}/redeploy",
        status_code=202,
        tags=["stacks"],
        openapi_extra=form_body(StackRedeploy),
        responses=responses,
    )
    async def redeploy_stack(user: CurrentUser, stack_id: UUID, request: Request, if_match: IfMatch = None) -> Response:
        """Deploy a new revision; if it does not get well in time, the one before comes back by itself."""
        await stacks.get(user, stack_id)  # before a body is read for nothing
        async with read_form(
            request, max_bytes=settings.max_zip_bytes, idle_s=settings.upload_idle_s, may_be_empty=True
        ) as form:
            asked = validated(StackRedeploy, form.fields)
            save_zip = form.save_zip if form.zip_file is not None else None
            new = await changes.redeploy(user, stack_id, asked, save_zip, if_match=if_match)
        return accepted_stack(new, views)

    @routes.post("/stacks/{stack_id}/rollback", status_code=202, tags=["stacks"], responses=responses)
    async def rollback_stack(
        user: CurrentUser, stack_id: UUID, asked: StackRollback | None = None, if_match: IfMatch = None
    ) -> Response:
        """Deploy what an earlier revision was, code, file, variables and images alike, as a new revision."""
        number = asked.revision if asked is not None else None
        return accepted_stack(await changes.rollback(user, stack_id, number, if_match=if_match), views)

    @routes.get("/stacks/{stack_id}/revisions", tags=["stacks"], responses=problems(_404=NOT_FOUND))
    async def list_stack_revisions(user: CurrentUser, stack_id: UUID) -> RevisionList:
        """The stack's revisions, newest first; as many as are kept."""
        return RevisionList(items=[views.revision(one) for one in await changes.revisions(user, stack_id)])
