"""The fetcher's own series: attempts by outcome and reason, bytes, downloads under way."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from services.fetcher.domain.jobs import UNFINISHED, ItemState, JobState
from services.fetcher.models import Item

NAMES = (
    *("telar_fetch_attempts_total", "telar_fetch_bytes_total", "telar_fetch_unchanged_total"),
    *("telar_fetch_downloads_running", "telar_fetch_items_waiting", "telar_fetch_jobs"),
    "telar_fetch_domains_in_trouble",
)


class FetchMetrics:
    """Registers its series with the service's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._attempts = Counter(
            "telar_fetch_attempts", "Attempts at pictures", ("outcome", "reason"), registry=registry
        )
        self._bytes = Counter("telar_fetch_bytes", "Bytes of the pictures stored", registry=registry)
        self._unchanged = Counter(
            "telar_fetch_unchanged", "Pictures that were stored and had not changed", registry=registry
        )
        self.running = Gauge("telar_fetch_downloads_running", "Downloads under way here", registry=registry)
        self.waiting = Gauge("telar_fetch_items_waiting", "Items taken here and not yet begun", registry=registry)
        self.troubled = Gauge(
            "telar_fetch_domains_in_trouble", "Domains that are left alone, narrowed or dead", registry=registry
        )
        self._jobs = Gauge(
            "telar_fetch_jobs", "Unfinished jobs by state, of all processes", ("state",), registry=registry
        )

    def count(self, state: ItemState, _item: Item, fields: Mapping[str, Any]) -> None:
        outcome = "retried" if state is ItemState.PENDING else state.value
        self._attempts.labels(outcome, fields.get("reason") or "").inc()
        if fields.get("unchanged"):
            self._unchanged.inc()
        elif state is ItemState.COMPLETED:
            self._bytes.inc(fields["size_bytes"])

    def jobs(self, counts: Mapping[JobState, int]) -> None:
        for state in UNFINISHED:
            self._jobs.labels(state.value).set(counts.get(state, 0))

    def text(self) -> bytes:
        """The fetcher's own series alone, in Prometheus' text format."""
        return generate_latest(self._registry.restricted_registry(NAMES))
