"""Traces (OpenTelemetry) and metrics (Prometheus): one trace from the HTTP edge through the outbox to the consumer."""

from collections.abc import Mapping
from functools import partial

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBasedTraceIdRatio
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_PROPAGATOR = TraceContextTextMapPropagator()
_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


def setup_tracing(process: str, otlp_endpoint: str | None) -> TracerProvider:
    """Install the process's tracer provider; without an endpoint ids are made and passed on, nothing is recorded."""
    provider = TracerProvider(
        resource=Resource.create({"service.name": process, "service.namespace": "telar"}),
        sampler=ParentBasedTraceIdRatio(1.0) if otlp_endpoint else ALWAYS_OFF,
    )
    if otlp_endpoint:
        exporter = OTLPSpanExporter(endpoint=otlp_endpoint.rstrip("/") + "/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


def tracer() -> trace.Tracer:
    return trace.get_tracer("telar")


def parent_context(headers: Mapping[str, str]) -> Context:
    return _PROPAGATOR.extract(headers)


def current_traceparent() -> str | None:
    """The W3C traceparent of the span under way, to be carried by an event or an outgoing request."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")


def current_trace_id() -> str | None:
    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None


class Metrics:
    """One service's registry with the series that every service has: requests by route, outbox, operations, pool."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        one, route, folder = ("service",), ("service", "method", "route"), ("service", "folder")
        self.requests = counter("telar_http_requests", "Requests answered", (*route, "status"))
        self.request_seconds = Histogram(
            "telar_http_request_seconds",
            "Time to the last byte of the answer",
            route,
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.problems = counter("telar_problems", "Expected failures answered", ("service", "slug"))
        self.outbox_waiting = gauge("telar_outbox_waiting", "Events not yet published", one)
        self.outbox_lag_seconds = gauge("telar_outbox_lag_seconds", "Age of the oldest unpublished event", one)
        self.dead_letters_kept = gauge(
            "telar_dead_letters_kept", "Messages that could not be handled and wait for an administrator", one
        )
        self.operations = counter("telar_operations", "Operations ended", ("service", "kind", "state"))
        self.operations_running = gauge("telar_operations_running", "Operations under way here", one)
        self.operations_unfinished = gauge(
            "telar_operations_unfinished", "Operations that have not ended", ("service", "state")
        )
        self.operations_overdue_seconds = gauge(
            "telar_operations_overdue_seconds",
            "Longest time that an operation which could go on has waited for a process to take it up",
            one,
        )
        self.operations_oldest_seconds = gauge(
            "telar_operations_oldest_seconds", "Age of the oldest unfinished operation", one
        )
        self.database_connections = gauge("telar_database_connections_used", "Connections checked out", one)
        self.database_connections_allowed = gauge(
            "telar_database_connections_allowed", "Size of the connection pool", one
        )
        self.disk_free_bytes = gauge("telar_disk_free_bytes", "Free space where a service keeps its data", folder)
        self.disk_size_bytes = gauge("telar_disk_size_bytes", "Size of the disk where a service keeps its data", folder)
