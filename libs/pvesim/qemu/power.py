"""The power calls, with the original's idempotence: what is refused at once and what only in the task."""

from libs.pvesim.access.accounts import ROOT
from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, only_root, parameter_error
from libs.pvesim.params import NODE_OPTIONAL, STORAGE, Param, boolean, integer, one_of, text
from libs.pvesim.qemu.model import Vm
from libs.pvesim.qemu.power_work import (
    SHUTDOWN_S,
    shut_down_guest,
    start_guest,
    start_task,
    stop_guest,
    suspend_to_disk,
)
from libs.pvesim.qemu.properties import parse
from libs.pvesim.tasks import TaskRun

routes = Routes()
_PATH = "/nodes/{node}/qemu/{vmid}/status"
_POWER = needs("/vms/{vmid}", "VM.PowerMgmt")
_START_PARAMS = {
    "force-cpu": text(),
    "machine": text(),
    "migratedfrom": NODE_OPTIONAL,
    "migration_network": text(),
    "migration_type": one_of("secure", "insecure"),
    "nets-host-mtu": text(since=(9,)),
    "skiplock": boolean(),
    "stateuri": text(128),
    "targetstorage": text(),
    "timeout": integer(0),
    "with-conntrack-state": boolean(since=(9,)),
}


@routes.post(f"{_PATH}/start", _START_PARAMS, _POWER)
async def start(call: Call) -> str:
    lab, authid = call.lab, call.identity.authid
    if not lab.access.is_root(authid):
        for name in call.params.keys() & (_START_PARAMS.keys() - {"timeout", "machine"}):
            raise only_root(name)
    lab.check_quorum()
    vm = lab.vms.by_id.get(call.vmid)
    if lab.ha.manages(call.vmid) and vm is not None:
        return _ha_request(call, "hastart", "started")

    async def worker(run: TaskRun) -> None:
        await start_guest(lab, call.node, call.vmid, run)

    return lab.tasks.start(call.node, "qmstart", str(call.vmid), authid, worker)


def _ha_request(call: Call, task_type: str, state: str, timeout_s: int | None = None) -> str:
    """Queue the wish and end: the machine follows with the manager's next round."""
    lab = call.lab

    async def worker(run: TaskRun) -> None:
        run.log(f"Requesting HA {'start' if state == 'started' else 'stop'} for VM {call.vmid}")
        lab.ha.request(call.vmid, state, timeout_s=timeout_s)

    return lab.tasks.start(call.node, task_type, str(call.vmid), call.identity.authid, worker)


@routes.post(
    f"{_PATH}/stop",
    {
        "keepActive": boolean(),
        "migratedfrom": NODE_OPTIONAL,
        "overrule-shutdown": boolean(since=(8, 1, 2)),
        "skiplock": boolean(),
        "timeout": integer(0),
    },
    _POWER,
)
async def stop(call: Call) -> str:
    lab, vmid = call.lab, call.vmid
    _root_options(call, "keepActive", "migratedfrom", "skiplock")
    if lab.ha.manages(vmid):
        if call.flag("overrule-shutdown"):
            raise parameter_error("overrule-shutdown", "Not applicable for HA resources.")
        return _ha_request(call, "hastop", "stopped", 0)
    overrule = call.flag("overrule-shutdown")

    async def worker(run: TaskRun) -> None:
        for other in lab.tasks.running("qmshutdown", str(vmid)) if overrule else []:
            own = other.task.authid == call.identity.authid
            if own or call.allows(f"/nodes/{call.node}", "Sys.Modify"):
                await lab.tasks.interrupt(other.task.upid)
        await stop_guest(lab, call.node, vmid, run)

    return lab.tasks.start(call.node, "qmstop", str(vmid), call.identity.authid, worker)


def _root_options(call: Call, *names: str) -> None:
    if not call.lab.access.is_root(call.identity.authid):
        for name in names:
            if call.flag(name):
                raise only_root(name)


@routes.post(
    f"{_PATH}/shutdown",
    {"forceStop": boolean(), "keepActive": boolean(), "skiplock": boolean(), "timeout": integer(0)},
    _POWER,
)
async def shutdown(call: Call) -> str:
    lab, vmid = call.lab, call.vmid
    _root_options(call, "keepActive", "skiplock")
    vm = lab.vms.by_id.get(vmid)
    force = call.flag("forceStop")
    if vm is not None and vm.qmp == "paused" and not force:
        raise PveError("VM is paused - cannot shutdown")
    timeout_s = int(call.get("timeout", _down_timeout(vm)))
    if lab.ha.manages(vmid):
        return _ha_request(call, "hastop", "stopped", timeout_s)

    async def worker(run: TaskRun) -> None:
        await shut_down_guest(lab, call.node, vmid, run, timeout_s=timeout_s, force=force)

    return lab.tasks.start(call.node, "qmshutdown", str(vmid), call.identity.authid, worker)


def _down_timeout(vm: Vm | None) -> int:
    startup = parse(str(vm.config.get("startup", "")), "order") if vm is not None else {}
    return int(startup.get("down", SHUTDOWN_S))


def _running(call: Call) -> Vm:
    vm = call.lab.vms.located(call.node, call.vmid)
    if not vm.running:
        raise PveError(f"VM {call.vmid} not running")
    return vm


@routes.post(f"{_PATH}/reboot", {"timeout": integer(0)}, _POWER)
async def reboot(call: Call) -> str:
    lab = call.lab
    vm = _running(call)
    if vm.qmp == "paused":
        raise PveError("VM is paused - cannot shutdown")
    timeout_s = int(call.get("timeout", _down_timeout(vm)))

    async def worker(run: TaskRun) -> None:
        await shut_down_guest(lab, vm.node, vm.vmid, run, timeout_s=timeout_s, force=False, task_type="qmreboot")
        # The event daemon of the node starts the machine again, as root and in a task of its own.
        start_task(lab, vm, ROOT)

    return lab.tasks.start(call.node, "qmreboot", str(vm.vmid), call.identity.authid, worker)


@routes.post(f"{_PATH}/reset", {"skiplock": boolean()}, _POWER)
async def reset(call: Call) -> str:
    lab = call.lab
    _root_options(call, "skiplock")
    vm = _running(call)

    async def worker(run: TaskRun) -> None:
        async with lab.locks.guest(vm.node, vm.vmid):
            vm.check_lock()
            await run.work(lab.settings.seconds_of("qmreset"))
            if vm.guest_up is not None:
                vm.guest_up = lab.clock.now() + lab.clock.real(lab.settings.boot_s)
            lab.vms.save(vm)

    return lab.tasks.start(call.node, "qmreset", str(vm.vmid), call.identity.authid, worker)


@routes.post(
    f"{_PATH}/suspend",
    {"skiplock": boolean(), "statestorage": Param(check=STORAGE.check, requires="todisk"), "todisk": boolean()},
    _POWER,
)
async def suspend(call: Call) -> str:
    lab = call.lab
    _root_options(call, "skiplock")
    vm = _running(call)
    to_disk = call.flag("todisk")
    if to_disk and lab.ha.manages(vm.vmid):
        raise PveError("Cannot suspend HA managed VM to disk")
    task_type = "qmsuspend" if to_disk else "qmpause"

    async def worker(run: TaskRun) -> None:
        async with lab.locks.guest(vm.node, vm.vmid):
            vm.check_lock()
            if to_disk:
                await suspend_to_disk(lab, vm, run, call.get("statestorage"))
                return
            await run.work(lab.settings.seconds_of(task_type))
            vm.qmp = "paused"
            lab.vms.save(vm)

    return lab.tasks.start(call.node, task_type, str(vm.vmid), call.identity.authid, worker)


@routes.post(f"{_PATH}/resume", {"nocheck": boolean(), "skiplock": boolean()}, _POWER)
async def resume(call: Call) -> str:
    lab = call.lab
    _root_options(call, "skiplock", "nocheck")
    vm = lab.vms.located(call.node, call.vmid)
    asleep = vm.lock == "suspended"
    if not vm.running and not asleep:
        raise PveError(f"VM {vm.vmid} not running")

    async def worker(run: TaskRun) -> None:
        if asleep:
            await start_guest(lab, vm.node, vm.vmid, run)
            return
        async with lab.locks.guest(vm.node, vm.vmid):
            vm.check_lock()
            await run.work(lab.settings.seconds_of("qmresume"))
            vm.qmp = "running"
            lab.vms.save(vm)

    return lab.tasks.start(call.node, "qmresume", str(vm.vmid), call.identity.authid, worker)
