"""Pure ASGI middleware of every service: request id, trace, access log, metrics, last-resort errors, body limits."""

import re
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog
from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common.errors import TelarError, TooLarge
from libs.common.ids import uuid7
from libs.common.problems import from_exception, problem_response
from libs.common.telemetry import Metrics, current_trace_id

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})

_log = structlog.get_logger()


def header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


class RequestContextMiddleware:
    """The outermost layer: an id for each request, its log line and metrics, surprises told as problems."""

    def __init__(self, app: ASGIApp, *, service: str, metrics: Metrics) -> None:
        self._app = app
        self._service = service
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request_id = self._request_id(scope)
        span = trace.get_current_span()  # FastAPI's own: it continues the caller's trace (see create_app)
        span.set_attribute("telar.service", self._service)
        with structlog.contextvars.bound_contextvars(
            service=self._service, request_id=request_id, trace_id=current_trace_id()
        ):
            await self._observed(scope, receive, send, request_id)

    async def _observed(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started = time.perf_counter()
        outcome = {"status": 0}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                outcome["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            elif message["type"] == "websocket.accept":
                outcome["status"] = 101
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if outcome["status"] or scope["type"] != "http":
                raise
            await problem_response(from_exception(error), instance=scope["path"])(scope, receive, send_with_id)
        finally:
            self._record(scope, outcome["status"], time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        method, route = scope.get("method", "WEBSOCKET"), _route(scope)
        self._metrics.requests.labels(self._service, method, route, status).inc()
        self._metrics.request_seconds.labels(self._service, method, route).observe(seconds)
        if scope["path"] not in _QUIET:
            identity = scope.get("state", {}).get("identity")
            _log.info(
                "request",
                method=method,
                path=scope["path"],
                status=status,
                duration_ms=round(seconds * 1000, 1),
                user_id=getattr(identity, "user_id", None),
            )

    def _request_id(self, scope: Scope) -> str:
        given = header(scope, b"x-request-id")
        return given.decode() if given and _REQUEST_ID.fullmatch(given) else uuid7().hex


def _route(scope: MutableMapping[str, Any]) -> str:
    """The route's template, so that metrics have few labels; one label for all unknown paths."""
    route = scope.get("route")
    return getattr(route, "path", None) or "(none)"


class BodyLimitMiddleware:
    """Refuses bodies over `max_bytes` with 413 before the handler sees them, but for those that are `streamed`."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, streamed: Callable[[Scope], bool]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD") or self._streamed(scope):
            await self._app(scope, receive, send)
            return
        try:
            replay = await self._read(scope, receive)
        except TelarError as error:
            await problem_response(error, instance=scope["path"])(scope, receive, send)
            return
        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """Read the whole body, which is at most `max_bytes`, so that a body without a length is bounded too."""
        declared = header(scope, b"content-length")
        if declared is not None and int(declared) > self._max_bytes:
            raise TooLarge(f"The body may have at most {self._max_bytes} bytes")
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return _once(message, receive)
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise TooLarge(f"The body may have at most {self._max_bytes} bytes")
            if not message.get("more_body"):
                return _once({"type": "http.request", "body": bytes(body), "more_body": False}, receive)


def _once(first: Message, rest: Receive) -> Receive:
    """Give a stored message first, then whatever comes."""
    stored = [first]

    async def receive() -> Message:
        return stored.pop() if stored else await rest()

    return receive
