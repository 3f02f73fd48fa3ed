"""The `/service` routes of the older VM and stack API: multipart forms, stacks named by an integer."""

from enum import StrEnum
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from libs.common.auth import CurrentUser, requires_scope
from libs.common.errors import FieldError, Invalid
from libs.common.operations import Operation
from libs.common.operations_api import location
from services.containers.adapters.forms import read_form
from services.containers.domain.stacks import Action, State
from services.containers.models import Stack
from services.containers.schemas import LegacyService, LegacyServiceCreate, StackCreate, StackOut
from services.containers.service import Stacks, Views
from services.containers.settings import ContainersSettings

_STATUS = {
    State.CREATING: "creating",
    State.RUNNING: "enabled",
    State.STARTING: "enabled",
    State.RESTARTING: "enabled",
    State.DEPLOYING: "enabled",
    State.STOPPING: "disabled",
    State.STOPPED: "disabled",
    State.DELETING: "deleted",
    State.UNKNOWN: "error",
    State.FAILED: "error",
}


class Control(StrEnum):
    """The older clients' words for what can be done with a stack."""

    START = "start"
    SHUTDOWN = "shutdown"
    RESTART = "restart"
    DELETE = "delete"

    @property
    def action(self) -> Action:
        return Action.STOP if self is Control.SHUTDOWN else Action(self.value)


def legacy_router(stacks: Stacks, views: Views, settings: ContainersSettings) -> APIRouter:
    """`/service-types`, `/service`, `/service/{id}` and `/control-service/{id}/{action}`."""
    routes = APIRouter(tags=["older clients"], dependencies=[requires_scope("stacks")])

    @routes.get("/service-types")
    async def list_service_types(_user: CurrentUser) -> list[str]:
        return [template.title for template in stacks.templates]

    @routes.post("/service", status_code=202, openapi_extra=_form_body())
    async def create_service(user: CurrentUser, request: Request, response: Response) -> LegacyService:
        async with read_form(request, max_bytes=settings.max_zip_bytes, idle_s=settings.upload_idle_s) as form:
            asked = _validated(form.fields)
            wanted = StackCreate(
                name=asked.service_name,
                service_types=asked.service_types,
                primary_app_type=asked.primary_app_type,
                git_repo_url=asked.git_repo_url,
                admin_pass=asked.admin_pass,
            )
            save_zip = form.save_zip if form.zip_file is not None else None
            # What cannot be made at all is told at once: an account just made may have to be waited for.
            await stacks.blueprint(wanted, with_zip=save_zip is not None, as_admin=user.is_admin)
            owner_id = await stacks.owner_for(user, asked.userid)
            new = await stacks.create(owner_id, wanted, save_zip, as_admin=user.is_admin)
        response.headers.update(location(new.operation))
        return _legacy(new.stack, views.recorded(new.stack), new.operation)

    @routes.get("/service/{service_id}")
    async def get_service(user: CurrentUser, service_id: int) -> LegacyService:
        stack = await stacks.by_number(user, service_id)
        return _legacy(stack, await views.one(stack))

    @routes.post("/control-service/{service_id}/{control}", status_code=202)
    async def control_service(
        user: CurrentUser, service_id: int, control: Control, response: Response
    ) -> LegacyService:
        stack = await stacks.by_number(user, service_id)
        new = await stacks.act(user, stack.id, control.action)
        response.headers.update(location(new.operation))
        return _legacy(new.stack, views.recorded(new.stack), new.operation)

    return routes


def _form_body() -> dict[str, Any]:
    schema = LegacyServiceCreate.model_json_schema()
    schema["properties"]["zip_file"] = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _validated(fields: dict[str, Any]) -> LegacyServiceCreate:
    try:
        return LegacyServiceCreate.model_validate(fields)
    except ValidationError as error:
        wrong = [FieldError("/body/" + "/".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
        raise Invalid("See errors for each wrong field", errors=wrong) from error


def _legacy(stack: Stack, shown: StackOut, operation: Operation | None = None) -> LegacyService:
    return LegacyService(
        service_id=stack.number,
        service_name=stack.name,
        status=_STATUS[State(stack.state)],
        state=State(stack.state),
        service_types=stack.service_types,
        primary_app_type=stack.primary_app_type,
        access_urls=shown.urls,
        reason=stack.reason,
        operation_id=operation.id if operation else None,
        stack=shown,
    )
