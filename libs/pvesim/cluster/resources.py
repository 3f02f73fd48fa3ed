"""The cluster-wide inventory: existence at once, names and run states with the statistics' delay."""

from typing import Any

from libs.pvesim.activity import load
from libs.pvesim.cluster.nodes import GIB, Node
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.lab import Lab
from libs.pvesim.params import one_of
from libs.pvesim.qemu.model import Vm
from libs.pvesim.qemu.status import usage

routes = Routes()
_LOCAL_SYSTEM_BYTES = 12 * GIB
Entry = dict[str, Any]


def vm_entry(lab: Lab, vm: Vm) -> Entry:
    """A machine: id, node, lock, tags and pool are current, the rest is from the last statistics round."""
    entry: Entry = {"id": f"qemu/{vm.vmid}", "type": "qemu", "vmid": vm.vmid, "node": vm.node, "status": "unknown"}
    for name in ("lock", "tags"):
        if name in vm.config:
            entry[name] = vm.config[name]
    if (pool := lab.pools.of(vm.vmid)) is not None:
        entry["pool"] = pool
    if (state := lab.ha.state_of(vm.vmid)) is not None:
        entry["hastate"] = state
    node = lab.nodes.by_name[vm.node]
    statistics = lab.vms.broadcast(vm)
    if statistics is None or lab.nodes.statistics_age(node) > lab.settings.stats_expiry_s:
        return entry
    known = {key: value for key, value in statistics.items() if key != "started"}
    used = usage(lab, vm.vmid, statistics["started"], statistics["maxmem"])
    newer = {"memhost": used["mem"]} if lab.settings.release.has((9,)) else {}
    return entry | known | used | {"disk": 0} | newer


def node_entry(lab: Lab, node: Node, *, full: bool) -> Entry:
    entry: Entry = {
        "id": f"node/{node.name}",
        "type": "node",
        "node": node.name,
        "status": "online" if node.up else "offline",
        "level": "",
    }
    if not full or not node.up:
        return entry
    running = [vm for vm in lab.vms if vm.node == node.name and vm.running]
    local = lab.storages.by_id["local"]
    guests = sum(vm.memory_mib * 1024**2 for vm in running) // 2
    return entry | {
        "cpu": min(1.0, round(0.01 + sum(vm.cpus for vm in running) * 0.15 / node.settings.cores, 6)),
        "maxcpu": node.settings.cores,
        "mem": min(node.memory_bytes, 3 * GIB + guests),
        "maxmem": node.memory_bytes,
        "disk": _LOCAL_SYSTEM_BYTES + lab.storages.used_bytes(local, node.name),
        "maxdisk": lab.storages.total_bytes(local, node.name),
        "uptime": 86400 + int(lab.clock.elapsed(node.booted)),
        "cgroup-mode": 2,
    }


def storage_entries(lab: Lab) -> list[Entry]:
    """One entry per storage and node."""
    entries = []
    for node in lab.nodes:
        for storage in lab.storages.by_id.values():
            if storage.disabled or not lab.storages.serves(storage, node.name):
                continue
            entry: Entry = {
                "id": f"storage/{node.name}/{storage.id}",
                "type": "storage",
                "storage": storage.id,
                "node": node.name,
                "plugintype": storage.type,
                "status": "available" if node.up else "unknown",
                "shared": int(storage.shared),
                "content": ",".join(lab.rng.sample(storage.content, len(storage.content))),
            }
            if node.up:
                entry["disk"] = lab.storages.used_bytes(storage, node.name)
                entry["maxdisk"] = lab.storages.total_bytes(storage, node.name)
            entries.append(entry)
    return entries


def _network_entries(call: Call) -> list[Entry]:
    """The bridges' zone of each node, in the form that release 9 added."""
    zone = "/sdn/zones/localnetwork"
    if not call.allows(zone, "SDN.Audit", "SDN.Use", any_of=True):
        return []
    return [
        {
            "id": f"network/{node.name}/zone/localnetwork",
            "type": "network",
            "network": "localnetwork",
            "network-type": "zone",
            "node": node.name,
            "status": "ok" if node.up else "unknown",
        }
        for node in call.lab.nodes
    ]


def _pool_entries(call: Call) -> list[Entry]:
    lab = call.lab
    entries = []
    for name, pool in lab.pools.by_name.items():
        if call.allows(f"/pool/{name}", "Pool.Audit"):
            machines = [vm_entry(lab, lab.vms.by_id[vmid]) for vmid in pool["vms"] if vmid in lab.vms.by_id]
            sums = {key: sum(vm.get(key, 0) for vm in machines) for key in ("cpu", "mem", "maxcpu", "maxmem", "uptime")}
            entries.append({"id": f"/pool/{name}", "type": "pool", "pool": name, **sums})
    return entries


@routes.get("/cluster/resources", {"type": one_of("vm", "storage", "node", "sdn")})
async def list_resources(call: Call) -> list[Entry]:
    lab, wanted = call.lab, call.get("type")
    if lab.faults.call("empty_inventory", method="GET", path="/cluster/resources") is not None:
        return []
    found: list[Entry] = []
    if wanted in {None, "vm"}:
        found += [vm_entry(lab, vm) for vm in lab.vms if call.allows(f"/vms/{vm.vmid}", "VM.Audit")]
    if wanted in {None, "node"}:
        found += [node_entry(lab, node, full=call.allows(f"/nodes/{node.name}", "Sys.Audit")) for node in lab.nodes]
    if wanted in {None, "storage"}:
        found += [e for e in storage_entries(lab) if call.allows(f"/storage/{e['storage']}", "Datastore.Audit")]
    if wanted is None:
        found += _pool_entries(call)
        found += _network_entries(call) if lab.settings.release.has((9,)) else []
    if wanted in {None, "sdn"}:
        zone = "/sdn/zones/localnetwork"
        shown = call.allows(zone, "SDN.Audit", "SDN.Use", any_of=True)
        found += [
            {
                "id": f"sdn/{node.name}/localnetwork",
                "type": "sdn",
                "sdn": "localnetwork",
                "node": node.name,
                "status": "ok",
            }
            for node in lab.nodes
            if shown
        ]
    return found


def node_load(lab: Lab, node: Node) -> list[str]:
    now = lab.clock.epoch()
    return [f"{load(node.name + str(minutes), now, 0.1, 1.5):.2f}" for minutes in (1, 5, 15)]
