"""What the bus counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class BusMetrics:
    """One process's (or embedded service's) bus figures; without a registry they are counted but shown nowhere."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.published = Counter(
            "telar_bus_published",
            "Events handed to the bus; outcome is confirmed, unroutable or unavailable",
            ["type", "outcome"],
            registry=registry,
        )
        self.handled = Counter(
            "telar_bus_handled",
            "Attempts to handle an event; outcome is handled, failed, transient or cancelled",
            ["queue", "outcome"],
            registry=registry,
        )
        self.handling_seconds = Histogram(
            "telar_bus_handling_seconds", "How long one attempt took", ["queue"], registry=registry
        )
        self.dead_letters = Counter(
            "telar_bus_dead_letters",
            "Messages given up and handed to the dead letter handler",
            ["queue"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "telar_bus_in_flight", "Messages taken and not yet settled", ["queue"], registry=registry
        )
        self.broadcasts_dropped = Counter(
            "telar_bus_broadcasts_dropped", "Broadcasts dropped: buffer full or broker away", registry=registry
        )
