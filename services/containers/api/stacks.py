"""Routes of templates and stacks: list, create, check, look, start, stop, restart, delete."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from libs.common.auth import CurrentUser
from libs.common.etag import IfMatch, set_etag
from libs.common.openapi import problems
from libs.common.pagination import PageQuery, page
from services.containers.adapters.forms import read_form
from services.containers.api.answers import NOT_FOUND, AcceptedStack, accepted_stack, form_body, validated
from services.containers.domain.stacks import Action, State
from services.containers.errors import InvalidStack, StackState
from services.containers.repository import sort_value
from services.containers.schemas import CheckedStack, StackCreate, StackOut, StackPage, TemplateOut
from services.containers.service import Stacks, Views
from services.containers.settings import ContainersSettings

_REFUSED = {
    "_400": "The form cannot be read",
    "_409": "The quota would be exceeded, or the name or a host port is taken",
    "_413": "The ZIP is too large",
    "_415": "Neither multipart/form-data nor JSON",
    "_422": "A field is wrong, the compose file is refused, or a ZIP and a Git URL came together",
    "_503": "No Docker engine answers, or no host port is left",
}


def add_routes(routes: APIRouter, stacks: Stacks, views: Views, settings: ContainersSettings) -> None:
    _add_templates(routes, stacks)
    _add_create(routes, stacks, views, settings)
    _add_validate(routes, stacks, settings)
    _add_reading(routes, stacks, views)
    _add_actions(routes, stacks, views)


def _add_templates(routes: APIRouter, stacks: Stacks) -> None:
    @routes.get("/stack-templates", tags=["stack templates"], responses=problems())
    async def list_stack_templates(_user: CurrentUser) -> list[TemplateOut]:
        """The service types that stacks are made of; `variables` is a JSON Schema."""
        return [TemplateOut.model_validate(template, from_attributes=True) for template in stacks.templates]


def _add_create(routes: APIRouter, stacks: Stacks, views: Views, settings: ContainersSettings) -> None:
    @routes.post(
        "/stacks",
        status_code=202,
        tags=["stacks"],
        openapi_extra=form_body(StackCreate),
        responses={202: {"model": AcceptedStack}, **problems(**_REFUSED)},
    )
    async def create_stack(user: CurrentUser, request: Request) -> Response:
        """Deploy a stack from templates or an own compose file, with code from a ZIP (`zip_file`) or a repository."""
        async with read_form(request, max_bytes=settings.max_zip_bytes, idle_s=settings.upload_idle_s) as form:
            wanted = validated(StackCreate, form.fields)
            save_zip = form.save_zip if form.zip_file is not None else None
            new = await stacks.create(user.user_id, wanted, save_zip, as_admin=user.is_admin)
        return accepted_stack(new, views)


def _add_validate(routes: APIRouter, stacks: Stacks, settings: ContainersSettings) -> None:
    @routes.post(
        "/stacks/validate",
        tags=["stacks"],
        openapi_extra=form_body(StackCreate, with_zip=False),
        responses=problems(_400="The form cannot be read", _422="What is wrong, each place by its pointer"),
    )
    async def validate_stack(user: CurrentUser, request: Request) -> CheckedStack:
        """Say whether a stack could be made of this, and show the file that would run; nothing is made."""
        async with read_form(request, max_bytes=settings.max_zip_bytes, idle_s=settings.upload_idle_s) as form:
            if form.zip_file is not None:
                raise InvalidStack("/body/zip_file", "Code is looked at when the stack is made; leave the ZIP out")
            wanted = validated(StackCreate, form.fields)
        return await stacks.validate(wanted, as_admin=user.is_admin)


def _add_reading(routes: APIRouter, stacks: Stacks, views: Views) -> None:
    @routes.get("/stacks", tags=["stacks"], responses=problems(_422="A filter, sort or cursor is wrong"))
    async def list_stacks(
        user: CurrentUser, asked: PageQuery, http: Request, response: Response, state: State | None = None
    ) -> StackPage:
        """The caller's stacks (everyone's for administrators), newest first."""
        rows = await stacks.list(user, asked, state)
        shown, cursor = page(rows, asked, position=lambda one: sort_value(one, asked.sort), http=(http, response))
        return StackPage(items=await views.many(shown), next_cursor=cursor)

    @routes.get("/stacks/{stack_id}", tags=["stacks"], responses=problems(_404=NOT_FOUND))
    async def get_stack(user: CurrentUser, stack_id: UUID, response: Response) -> StackOut:
        stack = await stacks.get(user, stack_id)
        set_etag(response, stack.version)
        return await views.one(stack)

    @routes.get(
        "/stacks/{stack_id}/compose",
        tags=["stacks"],
        response_class=Response,
        responses={
            200: {"description": "The compose file", "content": {"application/yaml": {}}},
            **problems(_404=NOT_FOUND, _409="The stack has no compose file (yet)"),
        },
    )
    async def get_stack_compose(user: CurrentUser, stack_id: UUID) -> Response:
        """The compose file that the stack runs from, to take away."""
        stack = await stacks.get(user, stack_id)
        if stack.compose is None:
            raise StackState(f"The stack is {stack.state} and has no compose file")
        headers = {"cache-control": "no-store", "content-disposition": 'attachment; filename="docker-compose.yml"'}
        return Response(stack.compose, media_type="application/yaml", headers=headers)


def _add_actions(routes: APIRouter, stacks: Stacks, views: Views) -> None:
    responses: dict[int | str, dict[str, Any]] = {
        202: {"model": AcceptedStack},
        **problems(
            _404=NOT_FOUND,
            _409="The stack's state does not allow it",
            _412="The stack has changed",
            _503="No Docker engine answers",
        ),
    }

    @routes.post("/stacks/{stack_id}/start", status_code=202, tags=["stacks"], responses=responses)
    async def start_stack(user: CurrentUser, stack_id: UUID, if_match: IfMatch = None) -> Response:
        """Start the stack; containers that somebody removed come back."""
        return accepted_stack(await stacks.act(user, stack_id, Action.START, if_match=if_match), views)

    @routes.post("/stacks/{stack_id}/stop", status_code=202, tags=["stacks"], responses=responses)
    async def stop_stack(user: CurrentUser, stack_id: UUID, if_match: IfMatch = None) -> Response:
        return accepted_stack(await stacks.act(user, stack_id, Action.STOP, if_match=if_match), views)

    @routes.post("/stacks/{stack_id}/restart", status_code=202, tags=["stacks"], responses=responses)
    async def restart_stack(user: CurrentUser, stack_id: UUID, if_match: IfMatch = None) -> Response:
        return accepted_stack(await stacks.act(user, stack_id, Action.RESTART, if_match=if_match), views)

    @routes.delete("/stacks/{stack_id}", status_code=202, tags=["stacks"], responses=responses)
    async def delete_stack(
        user: CurrentUser, stack_id: UUID, *, keep_volumes: bool = False, if_match: IfMatch = None
    ) -> Response:
        """Remove the stack with its containers, networks, files and, unless they are to be kept, volumes."""
        new = await stacks.act(user, stack_id, Action.DELETE, if_match=if_match, keep_volumes=keep_volumes)
        return accepted_stack(new, views)
