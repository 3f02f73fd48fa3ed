"""What the routes share: checked bodies, answers to accepted work."""

import re
from typing import Any, TypeVar

from fastapi import Response
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.types import Scope

from libs.common.errors import FieldError, Invalid
from libs.common.operations_api import OperationView, accepted
from services.containers.schemas import StackOut
from services.containers.service import NewStack, Views

PREFIX = "/api/v1"
NOT_FOUND = "No such stack, or it is not the caller's"
_STREAMED = re.compile(r"/api/v1/stacks(/validate|/[^/]+/redeploy)?|/service")
_STREAMED_FILES = re.compile(r"/api/v1/stacks/[^/]+/files(/.*)?")

M = TypeVar("M", bound=BaseModel)


class AcceptedStack(OperationView):
    """The operation that was begun, and the stack that it works on."""

    stack: StackOut


def streams_its_body(scope: Scope) -> bool:
    """Whether a request's handler reads the body in pieces and bounds it."""
    method, path = scope["method"], scope["path"]
    if method == "POST" and _STREAMED.fullmatch(path):
        return True
    return method in ("PUT", "POST") and _STREAMED_FILES.fullmatch(path) is not None


def form_body(model: type[BaseModel], *, with_zip: bool = True) -> dict[str, Any]:
    """Document a body that may be a form or JSON."""
    schema = TypeAdapter(model).json_schema(ref_template="#/components/schemas/{model}")
    limits = schema.pop("$defs")["LimitsIn"]
    schema["properties"]["limits"] = limits
    content = {"application/json": {"schema": schema}}
    file = {"zip_file": {"type": "string", "format": "binary"}} if with_zip else {}
    form = {**schema, "properties": {**schema["properties"], **file}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}, **content}}}


def validated(model: type[M], fields: dict[str, Any]) -> M:
    """Check a form's or a JSON body's fields; raises Invalid with each wrong one."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        wrong = [FieldError("/body/" + "/".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
        raise Invalid("See errors for each wrong field", errors=wrong) from error


def accepted_stack(new: NewStack, views: Views) -> Response:
    return accepted(new.operation, stack=views.recorded(new.stack).model_dump(mode="json"))
