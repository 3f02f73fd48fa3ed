"""Problem details (RFC 9457): one table from kinds to status codes, one way to write any failure as JSON."""

import errno
import html
import json
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from libs.common.db import as_database_error
from libs.common.errors import FieldError, Invalid, Kind, Malformed, StorageFull, TelarError
from libs.common.telemetry import Metrics, current_trace_id

CONTENT_TYPE = "application/problem+json"

STATUS = {
    Kind.MALFORMED: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.FORBIDDEN: 403,
    Kind.NOT_FOUND: 404,
    Kind.METHOD_NOT_ALLOWED: 405,
    Kind.CONFLICT: 409,
    Kind.GONE: 410,
    Kind.PRECONDITION_FAILED: 412,
    Kind.TOO_LARGE: 413,
    Kind.UNSUPPORTED_MEDIA: 415,
    Kind.RANGE_NOT_SATISFIABLE: 416,
    Kind.INVALID: 422,
    Kind.LOCKED: 423,
    Kind.THROTTLED: 429,
    Kind.CHECKSUM_MISMATCH: 460,  # of tus 1.0, not of HTTP
    Kind.INTERNAL: 500,
    Kind.UPSTREAM_FAILED: 502,
    Kind.UNAVAILABLE: 503,
    Kind.UPSTREAM_TIMEOUT: 504,
    Kind.STORAGE_FULL: 507,
}
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
KIND_OF_STATUS = {status: kind for kind, status in STATUS.items()}

_log = structlog.get_logger()


def status_of(error: TelarError) -> int:
    return STATUS[error.kind]


def problem(error: TelarError, *, instance: str) -> dict[str, Any]:
    """The problem document of an error met at the path `instance`."""
    document: dict[str, Any] = {
        **error.extensions,
        "type": f"/problems/{error.slug}",
        "title": error.title,
        "status": status_of(error),
        "detail": error.detail,
        "instance": instance,
    }
    trace_id = current_trace_id()
    if trace_id:
        document["trace_id"] = trace_id
    if error.errors:
        document["errors"] = [{"pointer": field.pointer, "detail": field.detail} for field in error.errors]
    return document


def problem_headers(error: TelarError) -> dict[str, str]:
    headers = {"cache-control": "no-store"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if error.kind is Kind.UNAUTHENTICATED:
        headers["www-authenticate"] = 'Bearer realm="telar", ApiKey realm="telar"'
    return headers


def problem_response(error: TelarError, *, instance: str) -> Response:
    return Response(
        json.dumps(problem(error, instance=instance)),
        status_code=status_of(error),
        headers=problem_headers(error),
        media_type=CONTENT_TYPE,
    )


def from_exception(error: Exception) -> TelarError:
    """What clients are told of an exception; surprises are logged with their traceback and told as `internal`."""
    if isinstance(error, TelarError):
        return error
    known = as_database_error(error)
    if known is not None:
        return known
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return StorageFull("The disk is full; nothing was changed", retry_after_s=60)
    if isinstance(error, DataError | UnicodeEncodeError):
        _log.warning("text_or_number_unusable", error=type(error).__name__)
        return Invalid("A text or number cannot be used, such as a text with NUL or half a surrogate pair in it")
    _log.exception("unexpected_error", error=type(error).__name__)
    return TelarError("It has been logged under this trace id; try again, and tell an operator if it stays")


def _validation(error: RequestValidationError) -> TelarError:
    fields = tuple(_field_error(item) for item in error.errors())
    if any(item["type"] == "json_invalid" for item in error.errors()):
        return Malformed(f"The body is not valid JSON: {error.errors()[0].get('ctx', {}).get('error', '')}")
    return Invalid("See errors for each wrong field", errors=fields)


def _field_error(item: Any) -> FieldError:
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in item["loc"])
    return FieldError(pointer=pointer, detail=item["msg"])


def _http_exception(error: HTTPException) -> TelarError:
    """Starlette's own refusals (no route, wrong method, unreadable form) in our words."""
    named = _refusal_with(error.status_code)
    if error.detail != named.title:
        return named(error.detail)
    allowed = (error.headers or {}).get("Allow")
    if allowed is not None:
        return named(f"This route takes {allowed}")
    return named("No route leads here; /docs lists all there are" if named.kind is Kind.NOT_FOUND else "")


@cache
def _refusal_with(status: int) -> type[TelarError]:
    kind = KIND_OF_STATUS.get(status, Kind.MALFORMED if status < 500 else Kind.INTERNAL)  # noqa: PLR2004
    phrase = HTTPStatus(status).phrase
    return type("HttpRefusal", (TelarError,), {"kind": kind, "slug": phrase.lower().replace(" ", "-"), "title": phrase})


def install(app: FastAPI, metrics: Metrics) -> None:
    """Answer every failure of the app as a problem, and serve the page that each problem's type points to."""

    def answer(request: Request, error: TelarError) -> Response:
        metrics.problems.labels(metrics.service, error.slug).inc()
        if error.kind is Kind.INTERNAL:
            _log.error("request_failed", slug=error.slug)
        else:
            _log.warning("request_refused", slug=error.slug, detail=error.detail)
        return problem_response(error, instance=request.url.path)

    async def telar(request: Request, error: Exception) -> Response:
        return answer(request, from_exception(error))

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class
        return answer(request, _validation(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
        response = answer(request, _http_exception(error))
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(TelarError, telar)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, telar)


def all_problems(base: type[TelarError] = TelarError) -> Iterable[type[TelarError]]:
    """Every error class that the process knows, for the pages under /problems/."""
    yield base
    for child in base.__subclasses__():
        yield from all_problems(child)


def problem_page(slug: str) -> Response | None:
    """The page behind a problem's `type`; None if there is no such problem."""
    for error in all_problems():
        if error.slug == slug:
            text = html.escape(error.__doc__ or error.title)
            title = html.escape(error.title)
            return HTMLResponse(
                f"<!doctype html><title>{title}</title><h1>{title}</h1>"
                f"<p>Status {STATUS[error.kind]} · <code>{html.escape(slug)}</code></p><p>{text}</p>"
            )
    return None
