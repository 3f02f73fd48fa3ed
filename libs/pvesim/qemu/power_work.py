"""What power tasks do: starting, stopping, shutting down and suspending a machine, under its config lock."""

from libs.pvesim.access.accounts import ROOT
from libs.pvesim.errors import PveError
from libs.pvesim.lab import Lab
from libs.pvesim.qemu.cloudinit import has_drive, regenerate
from libs.pvesim.qemu.disks import state_storage, volume_of
from libs.pvesim.qemu.model import Vm
from libs.pvesim.qemu.network import missing_bridge
from libs.pvesim.qemu.properties import parse
from libs.pvesim.qemu.update import apply_pending
from libs.pvesim.tasks import TaskRun

RUNNING_MACHINE = "pc-i440fx-10.1+pve0"
SHUTDOWN_S = 60
HA_LINE = "task started by HA resource agent"


def powered_off(lab: Lab, vm: Vm) -> None:
    """The process is gone."""
    vm.qmp, vm.started, vm.guest_up, vm.pid = "stopped", None, None, None
    lab.vms.save(vm)


def powered_on(lab: Lab, vm: Vm, run: TaskRun) -> None:
    """There is a process; its guest boots if there is a system on one of its disks."""
    now = lab.clock.now()
    vm.qmp, vm.started, vm.pid = "running", now, run.task.pid
    boots = any((volume := volume_of(lab, vm, value)) is not None and volume.os for value in vm.drives.values())
    vm.guest_up = now + lab.clock.real(lab.settings.boot_s) if boots else None
    lab.vms.save(vm)


async def start_guest(lab: Lab, node: str, vmid: int, run: TaskRun) -> None:
    async with lab.locks.guest(node, vmid):
        vm = lab.vms.configured(node, vmid)
        if vm.template:
            raise PveError("you can't start a vm if it's a template")
        suspended = vm.lock == "suspended"
        if not suspended:
            vm.check_lock()
        if vm.running:
            raise PveError(f"VM {vmid} already running")
        await apply_pending(lab, vm)
        lab.vms.save(vm)
        _check_devices(lab, vm, run)
        if has_drive(vm):
            run.log("generating cloud-init ISO")
            regenerate(lab, vm)
        await run.work(lab.settings.seconds_of("qmstart"))
        if suspended:
            vm.config.pop("lock", None)
            vm.config.pop("vmstate", None)
            for volume in lab.storages.owned(vmid):
                if "-state-suspend-" in volume.name:
                    lab.storages.forget(volume)
        powered_on(lab, vm, run)


def _check_devices(lab: Lab, vm: Vm, run: TaskRun) -> None:
    for value in vm.drives.values():
        file = parse(value, "file").get("file", "none")
        if ":" in file and volume_of(lab, vm, value) is None:
            raise PveError(f"volume '{file}' does not exist")
    for name, value in vm.config.items():
        bridge = missing_bridge(name, str(value))
        if bridge is not None:
            run.log(f"bridge '{bridge}' does not exist")
            raise PveError("start failed: QEMU exited with code 1")


def start_task(lab: Lab, vm: Vm, authid: str, *, by_ha: bool = False) -> str:
    """Fork a `qmstart` task of its own."""
    node, vmid = vm.node, vm.vmid

    async def worker(run: TaskRun) -> None:
        if by_ha:
            run.log(HA_LINE)
        await start_guest(lab, node, vmid, run)

    return lab.tasks.start(node, "qmstart", str(vmid), authid, worker)


def ha_start(lab: Lab, vm: Vm) -> str:
    return start_task(lab, vm, ROOT, by_ha=True)


def ha_stop(lab: Lab, vm: Vm, timeout_s: int | None) -> str:
    """The manager's own stop: hard when the request came with a timeout of 0, else a shutdown that ends in a stop."""

    async def worker(run: TaskRun) -> None:
        run.log(HA_LINE)
        if timeout_s == 0:
            await stop_guest(lab, vm.node, vm.vmid, run)
        else:
            await shut_down_guest(lab, vm.node, vm.vmid, run, timeout_s=timeout_s or SHUTDOWN_S, force=True)

    return lab.tasks.start(vm.node, "qmstop" if timeout_s == 0 else "qmshutdown", str(vm.vmid), ROOT, worker)


async def stop_guest(lab: Lab, node: str, vmid: int, run: TaskRun) -> None:
    async with lab.locks.guest(node, vmid):
        vm = lab.vms.located(node, vmid)
        if not vm.running:
            return
        vm.check_lock()
        await run.work(lab.settings.seconds_of("qmstop"))
        powered_off(lab, vm)


async def shut_down_guest(
    lab: Lab, node: str, vmid: int, run: TaskRun, *, timeout_s: int, force: bool, task_type: str = "qmshutdown"
) -> None:
    """Ask the guest to power off; the lock is held all the while, as in the original."""
    async with lab.locks.guest(node, vmid):
        vm = lab.vms.located(node, vmid)
        if not vm.running:
            return
        vm.check_lock()
        listens = vm.guest_up is not None and vm.qmp == "running"
        needed_s = lab.settings.seconds_of(task_type)
        if not listens or needed_s > timeout_s:
            await run.work(timeout_s)
            if not force:
                raise PveError("VM quit/powerdown failed - got timeout")
            run.log("VM still running - terminating now with SIGTERM")
        else:
            await run.work(needed_s)
        powered_off(lab, vm)


async def suspend_to_disk(lab: Lab, vm: Vm, run: TaskRun, storage: str | None) -> None:
    vm.config["lock"] = "suspending"
    lab.vms.save(vm)
    place = storage or state_storage(vm)
    state = await lab.storages.allocate(
        vm.node, place, vm.vmid, size=vm.memory_mib * 1024**2, suffix=f"state-suspend-{lab.clock.epoch()}"
    )
    await run.work(lab.settings.seconds_of("qmsuspend"))
    vm.config |= {"lock": "suspended", "vmstate": state.volid}
    powered_off(lab, vm)
