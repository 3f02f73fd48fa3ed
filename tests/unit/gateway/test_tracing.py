from collections.abc import MutableMapping
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.types import Receive, Scope, Send

from gateway.tracing import TracedEntry

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda name, **_options: provider.get_tracer(name))
    return exporter


async def call(status: int, headers: list[tuple[bytes, bytes]]) -> Scope:
    """What the app behind the entry is given."""
    given: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        given.append(scope)
        await send({"type": "http.response.start", "status": status, "headers": []})

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError

    async def send(_message: MutableMapping[str, Any]) -> None:
        return

    await TracedEntry(app)({"type": "http", "method": "POST", "path": "/x", "headers": headers}, receive, send)
    return given[0]


async def test_a_request_is_a_span_in_its_callers_trace_and_the_service_continues_it(
    spans: InMemorySpanExporter,
) -> None:
    caller = f"00-{TRACE_ID}-{SPAN_ID}-01".encode()
    given = await call(503, [(b"host", b"x"), (b"traceparent", caller)])
    (span,) = spans.get_finished_spans()
    assert format(span.context.trace_id, "032x") == TRACE_ID
    assert span.parent is not None
    assert format(span.parent.span_id, "016x") == SPAN_ID
    assert dict(span.attributes or {})["http.response.status_code"] == 503
    assert span.status.status_code is trace.StatusCode.ERROR
    own = f"00-{TRACE_ID}-{span.context.span_id:016x}-01".encode()
    assert given["headers"] == [(b"host", b"x"), (b"traceparent", own)]


async def test_a_request_without_a_trace_begins_one(spans: InMemorySpanExporter) -> None:
    given = await call(200, [])
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    ((name, value),) = given["headers"]
    assert name == b"traceparent"
    assert value.startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-".encode())
    assert span.status.is_unset
