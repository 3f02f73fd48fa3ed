"""Statistics over time of machines, nodes and storages, and the pictures' file names of old."""

from collections.abc import Iterator
from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.activity import load, pressure
from libs.pvesim.cluster.resources import node_entry
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import parameter_error
from libs.pvesim.params import STORAGE, Schema, boolean, integer, one_of, text
from libs.pvesim.qemu.model import MIB

routes = Routes()
_FRAMES = ("hour", "day", "week", "month", "year")
_CONSOLIDATION = one_of("AVERAGE", "MAX")
_FRAME: Schema = {"timeframe": one_of(*_FRAMES).must(), "cf": _CONSOLIDATION}
_NODE_FRAME: Schema = {"timeframe": one_of(*_FRAMES, "decade").must(), "cf": _CONSOLIDATION}
_VM_AUDIT = needs("/vms/{vmid}", "VM.Audit")
_STORAGE_READ = needs("/storage/{storage}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)
_DRAWN = {"ds": text(required=True)}
_STORAGE_PATH = "/nodes/{node}/storage/{storage}"
Sample = dict[str, Any]


def _times(call: Call, until: float | None = None) -> Iterator[int]:
    """The points in time of the call's frame, up to now or the moment the node failed."""
    frames = call.lab.settings.release.history_frames
    wanted = call.get("timeframe")
    if wanted not in frames:
        shown = ", ".join(frames)
        raise parameter_error("timeframe", f"value '{wanted}' does not have a value in the enumeration '{shown}'")
    step, points = frames[wanted]
    last = int(until or call.lab.clock.now()) // step * step
    return iter(range(last - step * (points - 1), last + 1, step))


def _step(call: Call) -> int:
    return call.lab.settings.release.history_frames[call.get("timeframe")][0]


@routes.get("/nodes/{node}/qemu/{vmid}/rrddata", _FRAME, _VM_AUDIT, on_node=False)
async def machine_history(call: Call) -> list[Sample]:
    """Samples before the machine was made or while it was off leave out what was not measured."""
    vm = call.lab.vms.configured(call.node, call.vmid)
    presses = call.lab.settings.release.shows_pressure
    seed, maxmem = str(vm.vmid), vm.memory_mib * MIB
    samples = []
    for time in _times(call):
        sample: Sample = {"time": time}
        if time >= vm.created - _step(call):
            sample |= {"maxcpu": vm.cpus, "maxmem": maxmem, "maxdisk": vm.disk_bytes, "disk": 0}
        if vm.started is not None and time >= vm.started - _step(call):
            memory = int(maxmem * load(f"mem{seed}", time, 0.25, 0.7))
            sample |= {
                "cpu": round(load(f"cpu{seed}", time, 0.01, 0.35), 6),
                "mem": memory,
                "netin": round(load(f"in{seed}", time, 0, 50_000), 3),
                "netout": round(load(f"out{seed}", time, 0, 20_000), 3),
                "diskread": round(load(f"dr{seed}", time, 0, 90_000), 3),
                "diskwrite": round(load(f"dw{seed}", time, 0, 60_000), 3),
            }
            sample |= {"memhost": memory, **pressure(seed, time)} if presses else {}
        samples.append(sample)
    return samples


@routes.get("/nodes/{node}/rrddata", _NODE_FRAME, needs("/nodes/{node}", "Sys.Audit"), on_node=False)
async def node_history(call: Call) -> list[Sample]:
    lab = call.lab
    node = lab.nodes.known(call.node)
    entry = node_entry(lab, node, full=True)
    release = lab.settings.release
    samples = []
    for time in _times(call, node.down_since):
        memory = int(node.memory_bytes * load(f"{node.name}m", time, 0.05, 0.4))
        sample = {
            "time": time,
            "maxcpu": node.settings.cores,
            "cpu": round(load(f"{node.name}c", time, 0.02, 0.4), 6),
            "iowait": round(load(f"{node.name}w", time, 0, 0.01), 6),
            "loadavg": round(load(f"{node.name}l", time, 0.1, 2), 2),
            "memtotal": node.memory_bytes,
            "memused": memory,
            "swaptotal": 8 * 1024 * MIB,
            "swapused": 0,
            "roottotal": entry.get("maxdisk", 0),
            "rootused": entry.get("disk", 0),
            "netin": round(load(f"{node.name}i", time, 0, 1e6), 1),
            "netout": round(load(f"{node.name}o", time, 0, 1e6), 1),
        }
        if release.shows_pressure:
            sample |= {"memavailable": node.memory_bytes - memory, "arcsize": 0, **pressure(node.name, time)}
        samples.append(sample)
    return samples


@routes.get(f"{_STORAGE_PATH}/rrddata", {**_FRAME, "storage": STORAGE.must()}, _STORAGE_READ)
async def storage_history(call: Call) -> list[Sample]:
    storages = call.lab.storages
    storage = storages.usable(call.get("storage"), call.node)
    total, used = storages.total_bytes(storage, call.node), storages.used_bytes(storage, call.node)
    return [{"time": time, "total": total, "used": used} for time in _times(call)]


def _picture(call: Call, subject: str) -> dict[str, str]:
    """Where the graph of old would lie."""
    names = "-".join(sorted(call.get("ds").split(",")))
    return {"filename": f"/tmp/rrd-{subject}-{call.get('timeframe')}-{names}.png"}  # noqa: S108  (the node's own)


@routes.get("/nodes/{node}/qemu/{vmid}/rrd", {**_FRAME, **_DRAWN}, _VM_AUDIT, on_node=False)
async def machine_graph(call: Call) -> dict[str, str]:
    return _picture(call, str(call.lab.vms.configured(call.node, call.vmid).vmid))


@routes.get(f"{_STORAGE_PATH}/rrd", {**_FRAME, **_DRAWN, "storage": STORAGE.must()}, _STORAGE_READ)
async def storage_graph(call: Call) -> dict[str, str]:
    return _picture(call, call.lab.storages.usable(call.get("storage"), call.node).id)


@routes.get(
    "/cluster/metrics/export",
    {"history": boolean(0), "local-only": boolean(0), "start-time": integer(0, default=0)},
    needs("/", "Sys.Audit"),
    since=(8, 3),
)
async def export(call: Call) -> dict[str, list[Sample]]:
    """The newest numbers of everything, oldest first; `data` stands inside the usual envelope once more."""
    lab, now = call.lab, call.lab.clock.epoch()
    metrics: list[Sample] = []

    def add(subject: str, metric: str, kind: str, value: float) -> None:
        metrics.append({"id": subject, "metric": metric, "timestamp": now, "type": kind, "value": value})

    for node in lab.nodes:
        if node.up and (not call.flag("local-only") or node.name == call.api_node):
            entry = node_entry(lab, node, full=True)
            add(f"node/{node.name}", "cpu_current", "gauge", entry["cpu"])
            add(f"node/{node.name}", "mem_used", "gauge", entry["mem"])
            add(f"node/{node.name}", "uptime", "gauge", entry["uptime"])
    for vm in lab.vms:
        if not call.flag("local-only") or vm.node == call.api_node:
            add(f"qemu/{vm.vmid}", "status", "gauge", int(vm.running))
            add(f"qemu/{vm.vmid}", "mem_total", "gauge", vm.memory_mib * MIB)
    return {"data": metrics if now >= call.get("start-time") else []}
