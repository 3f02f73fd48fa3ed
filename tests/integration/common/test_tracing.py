"""One trace from the request through outbox and bus to the consumer, told to an OTLP-like collector."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from libs.common.app import create_app
from libs.common.bus import LocalBus
from libs.common.db import Database
from libs.common.events import Event, Payload
from libs.common.health import Health
from libs.common.inbox import Inbox
from libs.common.outbox import OutboxRelay, SqlOutboxStore
from libs.common.settings import CommonSettings
from libs.common.telemetry import Metrics
from libs.common.testing.identity import TestIssuer
from libs.common.uow import UnitOfWork, UnitOfWorkFactory


class Rang(Payload):
    event_type: ClassVar[str] = "bell.chime.rang.v1"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", lambda name, **_options: provider.get_tracer(name))
    return exporter


async def test_request_outbox_bus_and_consumer_are_one_trace(
    database: Database, spans: InMemorySpanExporter, eventually: Callable[..., Awaitable[None]]
) -> None:
    uow = UnitOfWorkFactory(database, source="/telar/bell")
    routes = APIRouter()

    @routes.post("/ring")
    async def ring() -> None:
        async with uow() as unit:
            unit.add_event(Rang(), subject="b", owner=None)
            await unit.commit()

    @asynccontextmanager
    async def nothing(_app: FastAPI) -> AsyncIterator[None]:
        yield

    app = create_app(
        service="bell",
        title="Bell",
        description="",
        settings=CommonSettings(_env_file=None, embedded=True),
        metrics=Metrics("bell"),
        checks=Health(),
        verifier=TestIssuer().verifier(),
        idempotency=None,
        routers=[routes],
        lifespan=nothing,
    )
    heard: list[str] = []

    async def hear(_unit: UnitOfWork, event: Event) -> None:
        heard.append(format(trace.get_current_span().get_span_context().trace_id, "032x"))
        assert event.traceparent is not None

    bus = LocalBus()
    await bus.start()
    await Inbox("ear", bus, uow, {Rang.event_type: hear}).start()
    relay = OutboxRelay(SqlOutboxStore(database), bus, poll_s=0.05)
    await relay.start()
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bell") as client:
        await client.post("/ring", headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})

    def kinds() -> set[str]:
        finished = spans.get_finished_spans()
        return {span.kind.name for span in finished if format(span.context.trace_id, "032x") == trace_id}

    await eventually(lambda: {"SERVER", "CONSUMER"} <= kinds())
    assert heard == [trace_id]
    await relay.close()
    await bus.close()
