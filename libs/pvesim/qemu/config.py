"""The calls on a machine's configuration: read, pending, change at once (PUT) and change as a task (POST)."""

from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, parameter_error
from libs.pvesim.params import SNAPNAME, boolean
from libs.pvesim.qemu.model import Config
from libs.pvesim.qemu.options import UPDATE_ASYNC_PARAMS, UPDATE_PARAMS
from libs.pvesim.qemu.update import Change, shown_config
from libs.pvesim.tasks import TaskRun

routes = Routes()
_PATH = "/nodes/{node}/qemu/{vmid}"
_CHANGE = needs(
    "/vms/{vmid}", "VM.Config.Disk", "VM.Config.CDROM", "VM.Config.CPU", "VM.Config.Memory", "VM.Config.Network",
    "VM.Config.HWType", "VM.Config.Options", "VM.Config.Cloudinit", any_of=True,
)  # fmt: skip


@routes.get(f"{_PATH}/config", {"current": boolean(), "snapshot": SNAPNAME}, needs("/vms/{vmid}", "VM.Audit"))
async def read_config(call: Call) -> Config:
    vm, release = call.lab.vms.configured(call.node, call.vmid), call.lab.settings.release
    snapname = call.get("snapshot")
    if snapname is not None:
        if call.flag("current"):
            raise parameter_error("snapshot", "cannot use 'snapshot' parameter with 'current'")
        if snapname not in vm.snapshots:
            raise PveError(f"snapshot '{snapname}' does not exist")
        return shown_config(vm, vm.snapshots[snapname]["config"], release)
    if call.flag("current"):
        return shown_config(vm, vm.config, release)
    merged = {name: value for name, value in vm.config.items() if name not in vm.deletes} | vm.pending
    return shown_config(vm, merged, release)


@routes.get(f"{_PATH}/pending", permission=needs("/vms/{vmid}", "VM.Audit"))
async def read_pending(call: Call) -> list[dict[str, Any]]:
    vm, release = call.lab.vms.configured(call.node, call.vmid), call.lab.settings.release
    current, pending = shown_config(vm, vm.config, release), shown_config(vm, vm.pending, release)
    entries = []
    for name in sorted({*current, *pending} - {"digest"}):
        entry: dict[str, Any] = {"key": name}
        if name in current:
            entry["value"] = current[name]
        if name in vm.pending:
            entry["pending"] = pending[name]
        if name in vm.deletes:
            entry["delete"] = vm.deletes[name]
        entries.append(entry)
    return entries


@routes.put(f"{_PATH}/config", UPDATE_PARAMS, _CHANGE)
async def change_config(call: Call) -> None:
    await Change(call, call.lab.vms.located(call.node, call.vmid)).apply()


@routes.post(f"{_PATH}/config", UPDATE_ASYNC_PARAMS, _CHANGE)
async def change_config_in_task(call: Call) -> str | None:
    lab = call.lab
    change = Change(call, lab.vms.located(call.node, call.vmid))

    async def worker(run: TaskRun) -> None:
        await run.work(lab.settings.seconds_of("qmconfig"))
        await change.apply()

    upid = lab.tasks.start(call.node, "qmconfig", str(call.vmid), call.identity.authid, worker)
    delay = call.get("background_delay")
    if delay is None or not await lab.tasks.wait(upid, delay):
        return upid
    task = lab.tasks.find(call.node, upid)
    if task is not None and task.failed:
        raise PveError(f"failed to update VM {call.vmid}: {task.exitstatus}")
    return None
