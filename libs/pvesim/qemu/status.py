"""Listing machines, and their current status."""

from libs.pvesim.access.permissions import needs
from libs.pvesim.activity import load, pressure
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.lab import Lab
from libs.pvesim.params import boolean
from libs.pvesim.qemu.model import Config, Vm
from libs.pvesim.qemu.options import NETS, is_cdrom
from libs.pvesim.qemu.power_work import RUNNING_MACHINE

routes = Routes()
_MIB = 1024**2
_AUDIT = needs("/vms/{vmid}", "VM.Audit")
_SUBDIRS = (
    "agent", "clone", "cloudinit", "config", "feature", "firewall", "migrate", "monitor", "move_disk", "pending",
    "resize", "rrd", "rrddata", "sendkey", "snapshot", "spiceproxy", "status", "template", "termproxy", "unlink",
    "vncproxy", "vncwebsocket",
)  # fmt: skip
_STATUS_SUBDIRS = ("current", "reboot", "reset", "resume", "shutdown", "start", "stop", "suspend")


def usage(lab: Lab, vm_id: int, started: float | None, maxmem: int) -> Config:
    """Uptime (seconds), processor share and counters (bytes) of a machine that runs since `started`."""
    if started is None:
        return {"uptime": 0, "cpu": 0, "mem": 0, "netin": 0, "netout": 0, "diskread": 0, "diskwrite": 0}
    uptime = int(lab.clock.elapsed(started))
    now = lab.clock.epoch()
    return {
        "uptime": uptime,
        "cpu": round(load(f"cpu{vm_id}", now, 0.01, 0.35), 6) if uptime else 0,
        "mem": int(maxmem * load(f"mem{vm_id}", now, 0.25, 0.7)),
        "netin": uptime * 2048 + vm_id,
        "netout": uptime * 1024 + vm_id,
        "diskread": 180 * _MIB + uptime * 512,
        "diskwrite": 40 * _MIB + uptime * 4096,
    }


def status_of(lab: Lab, vm: Vm) -> Config:
    """The fields of a listing entry, live."""
    maxmem = vm.memory_mib * _MIB
    used = usage(lab, vm.vmid, vm.started, maxmem)
    status: Config = {
        "vmid": vm.vmid,
        "name": vm.name,
        "status": "running" if vm.running else "stopped",
        "cpus": vm.cpus,
        "maxmem": maxmem,
        "maxdisk": vm.disk_bytes,
        "disk": 0,
        **used,
    }
    if lab.settings.release.shows_pressure:
        status |= {"memhost": used["mem"], **pressure(str(vm.vmid), lab.clock.epoch() if vm.running else 0)}
    if vm.pid is not None:
        status["pid"] = vm.pid
    if vm.template:
        status["template"] = 1
    if "serial0" in vm.config:
        status["serial"] = 1
    for name in ("lock", "tags", "shares"):
        if name in vm.config:
            status[name] = vm.config[name]
    if int(vm.config.get("balloon", 0)):
        status["balloon_min"] = int(vm.config["balloon"]) * _MIB
    return status


@routes.get("/nodes/{node}/qemu", {"full": boolean()})
async def list_machines(call: Call) -> list[Config]:
    if call.lab.faults.call("empty_inventory", method="GET", path=f"/nodes/{call.node}/qemu") is not None:
        return []
    return [
        status_of(call.lab, vm)
        for vm in call.lab.vms
        if vm.node == call.node and call.allows(f"/vms/{vm.vmid}", "VM.Audit")
    ]


@routes.get("/nodes/{node}/qemu/{vmid}")
async def index(call: Call) -> list[dict[str, str]]:  # noqa: ARG001  (an index is the same for every machine)
    return [{"subdir": name} for name in _SUBDIRS]


@routes.get("/nodes/{node}/qemu/{vmid}/status")
async def status_index(call: Call) -> list[dict[str, str]]:  # noqa: ARG001  (an index is the same for every machine)
    return [{"subdir": name} for name in _STATUS_SUBDIRS]


@routes.get("/nodes/{node}/qemu/{vmid}/status/current", permission=_AUDIT)
async def current(call: Call) -> Config:
    lab = call.lab
    vm = lab.vms.configured(call.node, call.vmid)
    status = status_of(lab, vm) | {"qmpstatus": vm.qmp}
    managed = lab.ha.manages(vm.vmid)
    status["ha"] = {"managed": int(managed)} | ({"state": lab.ha.state_of(vm.vmid)} if managed else {})
    if str(vm.config.get("agent", "0")).removeprefix("enabled=").startswith("1"):
        status["agent"] = 1
    if str(vm.config.get("vga", "")).startswith("qxl"):
        status["spice"] = 1
    return status | (_process(vm, status) if vm.running else {})


def _process(vm: Vm, status: Config) -> Config:
    """What QEMU itself tells of a running machine; its truths are JSON's own."""
    used, most = status["mem"], status["maxmem"]
    ballooninfo = {"actual": most, "max_mem": most, "total_mem": most, "free_mem": most - used, "last_update": 0}
    disks = [slot for slot, value in sorted(vm.drives.items()) if not is_cdrom(slot, value)]
    nets = sorted(name for name in vm.config if name in NETS)
    return {
        "running-machine": RUNNING_MACHINE,
        "running-qemu": "10.1.2",
        "freemem": most - used,
        "balloon": most,
        "ballooninfo": ballooninfo,
        "blockstat": {
            slot: {"rd_bytes": status["diskread"], "wr_bytes": status["diskwrite"], "failed_rd_operations": 0}
            for slot in disks
        },
        "nics": {f"tap{vm.vmid}i{name[3:]}": {"netin": status["netin"], "netout": status["netout"]} for name in nets},
        "proxmox-support": {"pbs-dirty-bitmap": True, "query-bitmap-info": True},
    }
