from prometheus_client import CollectorRegistry, generate_latest

from services.vms.adapters.exporter import PveCollector
from services.vms.domain.cluster import Inventory, Machine, Node, Storage

OURS = frozenset({"telar"})


def text_of(known: Inventory | None, *, guests: int = 10) -> str:
    registry = CollectorRegistry()
    seen = [] if known is None else [("lab", known)]
    registry.register(PveCollector(lambda: seen, tag="telar", guests=guests))
    return generate_latest(registry).decode()


def test_no_more_than_so_many_guests_are_shown_and_none_of_others() -> None:
    machines = [Machine(100 + number, "sv1", f"m{number}", "running", tags=OURS) for number in range(5)]
    machines.append(Machine(200, "sv1", "stranger", "running"))
    text = text_of(Inventory(machines={machine.vmid: machine for machine in machines}), guests=3)
    assert [f"qemu/{vmid}" for vmid in range(100, 210) if f'pve_up{{cluster="lab",id="qemu/{vmid}"}}' in text] == [
        "qemu/100",
        "qemu/101",
        "qemu/102",
    ]
    assert 'pve_guests_not_shown{cluster="lab"} 2.0' in text
    assert "stranger" not in text


def test_what_is_away_is_down_and_has_no_figures() -> None:
    nodes = {"sv1": Node("sv1", online=False)}
    storages = {("sv1", "local"): Storage("local", "sv1", shared=False, available=False, free_gib=0.0)}
    text = text_of(Inventory(nodes, {}, storages))
    assert 'pve_up{cluster="lab",id="node/sv1"} 0.0' in text
    assert 'pve_up{cluster="lab",id="storage/sv1/local"} 0.0' in text
    assert "pve_memory_size_bytes{" not in text
    assert "pve_disk_size_bytes{" not in text


def test_a_cluster_that_was_not_seen_lately_shows_nothing() -> None:
    assert "lab" not in text_of(None)


def test_ha_states_and_locks_are_labels() -> None:
    machine = Machine(100, "sv1", "a", "stopped", tags=OURS, lock="backup", ha_state="freeze")
    text = text_of(Inventory(machines={100: machine}))
    assert 'pve_ha_state{cluster="lab",id="qemu/100",state="freeze"} 1.0' in text
    assert 'pve_lock_state{cluster="lab",id="qemu/100",state="backup"} 1.0' in text
