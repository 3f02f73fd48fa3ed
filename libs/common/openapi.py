"""An app's OpenAPI document, in which every route's refusals are declared the same way, as problems (RFC 9457)."""

from typing import Any

from fastapi import FastAPI

from libs.common.problems import CONTENT_TYPE

PROBLEM = {
    "title": "Problem",
    "description": "What went wrong (RFC 9457); `type` is the address of a page that explains it.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "trace_id": {"type": "string", "description": "Tell it to an operator"},
        "errors": {
            "type": "array",
            "description": "Each wrong field",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "A JSON pointer into the request"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}
_CONTENT = {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_DESCRIPTIONS = {
    "400": "The request cannot be read",
    "401": "No valid credentials",
    "403": "Not allowed",
    "404": "There is no such resource, or it is another user's",
    "409": "The request conflicts with the current state",
    "412": "The resource has changed since the version that If-Match names",
    "413": "The body is too large",
    "414": "The path and query are too long",
    "415": "The body's media type is not supported",
    "422": "The request's content is not valid; `errors` names each wrong field",
    "429": "Too many requests; Retry-After tells when to come back",
    "503": "Temporarily unavailable; Retry-After tells when to come back",
}
_METHODS = frozenset({"get", "put", "post", "delete", "patch", "head"})
_FIRST_ERROR = "400"
_REPLACED = ("HTTPValidationError", "ValidationError")


def problems(**statuses: str) -> dict[int | str, dict[str, Any]]:
    """A route's own words for what it refuses, as `_404="…"`, and what every route that needs a key refuses."""
    told = {"_401": "No valid credentials", "_403": "The key lacks a scope", **statuses}
    return {int(status[1:]): {"description": words} for status, words in told.items()}


def install(app: FastAPI) -> None:
    """Complete the document that the app makes of its routes, once, when it is first asked for."""
    made_by_routes = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            declare_problems(made_by_routes())
        return app.openapi_schema or {}

    app.openapi = complete  # type: ignore[method-assign] # FastAPI's documented way to extend the document


def declare_problems(document: dict[str, Any]) -> None:
    """Add to each operation the problems it may answer; a route's own words for a status stay."""
    for path, item in document.get("paths", {}).items():
        for method, operation in item.items():
            if method in _METHODS:
                _declare(operation["responses"], _may_answer(path, method, operation))
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in _REPLACED:
        schemas.pop(name, None)
    schemas["Problem"] = PROBLEM


def _may_answer(path: str, method: str, operation: dict[str, Any]) -> set[str]:
    fields = operation.get("parameters", [])
    changes = method != "get"
    statuses = {"400", "429", "503"}
    if operation.get("security") or changes:
        statuses |= {"401", "403"}
    if "{" in path or operation.get("security"):
        statuses.add("404")  # even one's own account may be gone
    if changes:
        statuses |= {"409", "413"}
    if "requestBody" in operation:
        statuses.add("415")
    if fields:
        statuses.add("414")
    if fields or changes:  # an Idempotency-Key that was used for something else is a 422 too
        statuses.add("422")
    if any(field.get("name", "").lower() == "if-match" for field in fields):
        statuses.add("412")
    return statuses


def _declare(responses: dict[str, Any], statuses: set[str]) -> None:
    for status in sorted(statuses | set(responses)):
        if status < _FIRST_ERROR:
            continue
        declared = responses.setdefault(status, {"description": _DESCRIPTIONS.get(status, "Refused")})
        if declared["description"] == "Validation Error":
            declared["description"] = _DESCRIPTIONS[status]
        content = declared.get("content", {})
        if not content or CONTENT_TYPE in content or "HTTPValidationError" in str(content):
            declared["content"] = dict(_CONTENT)
