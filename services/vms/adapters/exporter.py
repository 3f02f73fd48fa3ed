"""Figures of clusters for Prometheus, under the names of prometheus-pve-exporter; asks the clusters nothing.

Its source is the one list that the state poller reads: of several replicas, the one that polls shows figures.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from services.vms.domain.cluster import Inventory, Machine, Node, Storage

_MIB = 1024**2
_GUEST = ("cluster", "id")
_FIGURES: Mapping[str, str] = {
    "pve_up": "Whether the node is online, the guest runs, or the storage can be reached",
    "pve_cpu_usage_ratio": "Share of the cores in use, from 0 to 1",
    "pve_cpu_usage_limit": "Cores",
    "pve_memory_size_bytes": "Memory",
    "pve_memory_usage_bytes": "Memory in use",
    "pve_disk_size_bytes": "Size of the storage, or of the guest's boot disk",
    "pve_disk_usage_bytes": "Bytes in use on the storage",
    "pve_disk_read_bytes": "Bytes read since the guest was started",
    "pve_disk_write_bytes": "Bytes written since the guest was started",
    "pve_network_receive_bytes": "Bytes received since the guest was started",
    "pve_network_transmit_bytes": "Bytes sent since the guest was started",
    "pve_uptime_seconds": "Time since the start",
    "pve_storage_shared": "Whether all nodes see the same storage",
}
Sample = tuple[str, str, float]
"""The figure's name, what it is of, and its value."""


class PveCollector(Collector):
    """Shows nodes, storages and Telar's own guests (those with its tag), at most `guests` of each cluster."""

    def __init__(self, seen: Callable[[], Iterable[tuple[str, Inventory]]], *, tag: str, guests: int) -> None:
        self._seen = seen
        self._tag = tag
        self._guests = guests

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        figures = {name: GaugeMetricFamily(name, text, labels=_GUEST) for name, text in _FIGURES.items()}
        nodes = GaugeMetricFamily("pve_node_info", "A node", labels=(*_GUEST, "name"))
        guests = GaugeMetricFamily("pve_guest_info", "A guest", labels=(*_GUEST, "node", "name", "type", "template"))
        storages = GaugeMetricFamily("pve_storage_info", "A storage on a node", labels=(*_GUEST, "node", "storage"))
        managed = GaugeMetricFamily("pve_ha_state", "The HA manager's state of a guest", labels=(*_GUEST, "state"))
        locked = GaugeMetricFamily("pve_lock_state", "The lock of a guest", labels=(*_GUEST, "state"))
        hidden = GaugeMetricFamily("pve_guests_not_shown", "Guests of Telar beyond the limit", labels=("cluster",))
        for cluster, known in self._seen():
            ours = sorted(
                (machine for machine in known.machines.values() if self._tag in machine.tags),
                key=lambda machine: machine.vmid,
            )
            shown = list(islice(ours, self._guests))
            hidden.add_metric((cluster,), len(ours) - len(shown))
            for name, subject, value in _samples(known, shown):
                figures[name].add_metric((cluster, subject), value)
            for node in known.nodes.values():
                nodes.add_metric((cluster, f"node/{node.name}", node.name), 1)
            for storage in known.storages.values():
                subject = f"storage/{storage.node}/{storage.name}"
                storages.add_metric((cluster, subject, storage.node, storage.name), 1)
            for guest in shown:
                subject, template = f"qemu/{guest.vmid}", str(int(guest.template))
                guests.add_metric((cluster, subject, guest.node, guest.name, "qemu", template), 1)
                if guest.ha_state is not None:
                    managed.add_metric((cluster, subject, guest.ha_state), 1)
                if guest.lock is not None:
                    locked.add_metric((cluster, subject, guest.lock), 1)
        yield from (*figures.values(), nodes, guests, storages, managed, locked, hidden)


def _samples(known: Inventory, guests: Iterable[Machine]) -> Iterator[Sample]:
    for node in known.nodes.values():
        yield from _of_node(node)
    for storage in known.storages.values():
        yield from _of_storage(storage)
    for guest in guests:
        yield from _of_guest(guest)


def _of_node(node: Node) -> Iterator[Sample]:
    subject = f"node/{node.name}"
    yield "pve_up", subject, float(node.online)
    if node.online:
        yield "pve_cpu_usage_ratio", subject, node.cpu_load
        yield "pve_cpu_usage_limit", subject, node.cores
        yield "pve_memory_size_bytes", subject, node.memory_mib * _MIB
        yield "pve_memory_usage_bytes", subject, node.memory_used_mib * _MIB
        yield "pve_uptime_seconds", subject, node.uptime_s


def _of_storage(storage: Storage) -> Iterator[Sample]:
    subject = f"storage/{storage.node}/{storage.name}"
    yield "pve_up", subject, float(storage.available)
    yield "pve_storage_shared", subject, float(storage.shared)
    if storage.available:
        yield "pve_disk_size_bytes", subject, storage.size_bytes
        yield "pve_disk_usage_bytes", subject, storage.used_bytes


def _of_guest(guest: Machine) -> Iterator[Sample]:
    subject, used = f"qemu/{guest.vmid}", guest.used
    yield "pve_up", subject, float(guest.status == "running")
    yield "pve_cpu_usage_ratio", subject, used.cpu_load
    yield "pve_cpu_usage_limit", subject, guest.cores
    yield "pve_memory_size_bytes", subject, guest.memory_mib * _MIB
    yield "pve_memory_usage_bytes", subject, used.memory_bytes
    yield "pve_disk_size_bytes", subject, guest.disk_bytes
    yield "pve_disk_read_bytes", subject, used.disk_read_bytes
    yield "pve_disk_write_bytes", subject, used.disk_written_bytes
    yield "pve_network_receive_bytes", subject, used.network_received_bytes
    yield "pve_network_transmit_bytes", subject, used.network_sent_bytes
    yield "pve_uptime_seconds", subject, guest.uptime_s
