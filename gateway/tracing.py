"""The gateway's own span of each request, where traces are collected; without a collector no request pays for it."""

from collections.abc import MutableMapping
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common.telemetry import current_traceparent, parent_context, tracer

_TRACEPARENT = b"traceparent"
_FAILURES = 500


class TracedEntry:
    """Runs an app inside a span that continues the caller's trace, and tells the app to continue the span."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _TRACEPARENT), b"")
        method = scope.get("method", "WEBSOCKET")
        with tracer().start_as_current_span(
            f"{method} at the gateway",
            context=parent_context({"traceparent": given.decode("latin-1")}),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": scope["path"]},
        ) as span:

            async def seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _note(span, message)
                await send(message)

            await self._app(_continued(scope), receive, seen)


def _continued(scope: Scope) -> Scope:
    own = (current_traceparent() or "").encode()
    others = [(name, value) for name, value in scope["headers"] if name != _TRACEPARENT]
    return {**scope, "headers": [*others, (_TRACEPARENT, own)]}


def _note(span: trace.Span, message: MutableMapping[str, Any]) -> None:
    status = int(message["status"])
    span.set_attribute("http.response.status_code", status)
    if status >= _FAILURES:
        span.set_status(trace.StatusCode.ERROR)
