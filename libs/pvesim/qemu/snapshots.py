"""Snapshots: taking, listing, rolling back to and deleting them."""

import contextlib
import copy
from collections.abc import Awaitable, Callable
from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError
from libs.pvesim.lab import Lab
from libs.pvesim.params import SNAPNAME, boolean, text
from libs.pvesim.qemu.disks import can_snapshot, owned_volume, state_storage
from libs.pvesim.qemu.model import MIB, Config, Vm
from libs.pvesim.qemu.power_work import RUNNING_MACHINE, powered_off, powered_on, start_task
from libs.pvesim.qemu.properties import parse, size_bytes
from libs.pvesim.tasks import TaskRun, Worker

routes = Routes()
_PATH = "/nodes/{node}/qemu/{vmid}/snapshot"
_SNAPSHOT = needs("/vms/{vmid}", "VM.Snapshot")
_ROLLBACK = needs("/vms/{vmid}", "VM.Snapshot", "VM.Snapshot.Rollback", any_of=True)
_READ = needs("/vms/{vmid}", "VM.Snapshot", "VM.Snapshot.Rollback", "VM.Audit", any_of=True)
_NAME = {"snapname": SNAPNAME.must()}


@routes.get(_PATH, permission=needs("/vms/{vmid}", "VM.Audit"))
async def list_snapshots(call: Call) -> list[Config]:
    vm = call.lab.vms.configured(call.node, call.vmid)
    entries = [
        {
            "name": name,
            **{key: snapshot[key] for key in ("description", "snaptime", "parent", "vmstate") if key in snapshot},
        }
        for name, snapshot in vm.snapshots.items()
    ]
    for entry in entries:
        if "vmstate" in entry:
            entry["vmstate"] = 1
    current: Config = {
        "name": "current",
        "description": "You are here!",
        "digest": vm.digest(),
        "running": int(vm.running),
    }
    if "parent" in vm.config:
        current["parent"] = vm.config["parent"]
    return [*entries, current]


@routes.post(_PATH, {**_NAME, "description": text(), "vmstate": boolean()}, _SNAPSHOT)
async def take(call: Call) -> str:
    lab, name = call.lab, call.get("snapname")
    if name in {"current", "pending"}:
        raise PveError(f"unable to use snapshot name '{name}' (reserved name)")
    lab.vms.located(call.node, call.vmid)

    async def work(vm: Vm, run: TaskRun) -> None:
        if name in vm.snapshots:
            raise PveError(f"snapshot name '{name}' already used")
        if vm.template:
            raise PveError("you can't take a snapshot if it's a template")
        if not can_snapshot(lab, vm):
            raise PveError("snapshot feature is not available")
        snapshot = _picture_of(lab, vm, call.get("description", ""))
        vm.config["lock"] = "snapshot"
        lab.vms.save(vm)
        if call.flag("vmstate") and vm.running:
            snapshot |= await _save_memory(lab, vm, run, name)
        await run.work(lab.settings.seconds_of("qmsnapshot"))
        vm.snapshots[name] = snapshot
        vm.config["parent"] = name

    return lab.tasks.start(call.node, "qmsnapshot", str(call.vmid), call.identity.authid, _locked_work(call, work))


def _picture_of(lab: Lab, vm: Vm, description: str) -> dict[str, Any]:
    """What a snapshot keeps of a machine: its configuration and what lies on its disks."""
    snapshot: dict[str, Any] = {
        "description": description,
        "snaptime": lab.clock.epoch(),
        "config": copy.deepcopy({key: value for key, value in vm.config.items() if key not in {"lock", "parent"}}),
        "guest": copy.deepcopy(vm.guest),
    }
    if "parent" in vm.config:
        snapshot["parent"] = vm.config["parent"]
    return snapshot


async def _save_memory(lab: Lab, vm: Vm, run: TaskRun, name: str) -> dict[str, Any]:
    """Write the running machine's memory to a volume of its own."""
    state = await lab.storages.allocate(
        vm.node, state_storage(vm), vm.vmid, size=vm.memory_mib * MIB, suffix=f"state-{name}"
    )
    run.log(f"saving VM state and RAM using storage '{state.storage}'")
    try:
        await run.work(lab.settings.seconds_of("qmsuspend"))
    except BaseException:
        if not run.killed:
            lab.storages.forget(state)
        raise
    up = vm.guest_up is not None and vm.guest_up <= lab.clock.now()
    return {"vmstate": state.volid, "runningmachine": RUNNING_MACHINE, "guest_was_up": int(up)}


def _locked_work(
    call: Call, work: Callable[[Vm, TaskRun], Awaitable[None]], *, beside_migration: bool = True
) -> Worker:
    """Run `work(vm, run)` under the config lock; the lock option it sets is always taken off again."""
    lab: Lab = call.lab

    async def worker(run: TaskRun) -> None:
        async with contextlib.AsyncExitStack() as locks:
            if not beside_migration:
                await locks.enter_async_context(lab.locks.migration(call.node, call.vmid))
            await locks.enter_async_context(lab.locks.guest(call.node, call.vmid))
            vm = lab.vms.located(call.node, call.vmid)
            vm.check_lock()
            try:
                await work(vm, run)
            finally:
                if not run.killed:
                    vm.config.pop("lock", None)
                    lab.vms.save(vm)

    return worker


@routes.get(f"{_PATH}/{{snapname}}", _NAME, on_node=False)
async def index(call: Call) -> list[dict[str, str]]:  # noqa: ARG001  (an index is the same for every snapshot)
    return [{"cmd": "rollback"}, {"cmd": "config"}]


def _snapshot(vm: Vm, name: str) -> dict[str, Any]:
    if name not in vm.snapshots:
        raise PveError(f"snapshot '{name}' does not exist")
    found: dict[str, Any] = vm.snapshots[name]
    return found


@routes.get(f"{_PATH}/{{snapname}}/config", _NAME, _READ)
async def read(call: Call) -> Config:
    snapshot = _snapshot(call.lab.vms.configured(call.node, call.vmid), call.get("snapname"))
    kept = ("description", "parent", "runningmachine", "snaptime", "vmstate")
    return {**snapshot["config"], **{key: snapshot[key] for key in kept if key in snapshot}}


@routes.put(f"{_PATH}/{{snapname}}/config", {**_NAME, "description": text()}, _SNAPSHOT)
async def describe(call: Call) -> None:
    vm = call.lab.vms.configured(call.node, call.vmid)
    _snapshot(vm, call.get("snapname"))["description"] = call.get("description", "")
    call.lab.vms.save(vm)


@routes.post(f"{_PATH}/{{snapname}}/rollback", {**_NAME, "start": boolean(0)}, _ROLLBACK)
async def rollback(call: Call) -> str:
    """Go back; a snapshot with memory goes on running by itself, others start in a task of their own when asked to."""
    lab, name = call.lab, call.get("snapname")
    if call.flag("start") and lab.settings.release.has((9, 2)):
        call.require(f"/vms/{call.vmid}", "VM.PowerMgmt")
    lab.vms.located(call.node, call.vmid)

    async def work(vm: Vm, run: TaskRun) -> None:
        snapshot = _snapshot(vm, name)
        _check_latest(lab, vm, name)
        vm.config["lock"] = "rollback"
        lab.vms.save(vm)
        if vm.running:
            powered_off(lab, vm)
        await run.work(lab.settings.seconds_of("qmrollback"))
        vm.config = {**copy.deepcopy(snapshot["config"]), "parent": name}
        vm.pending, vm.deletes = {}, {}
        vm.guest = copy.deepcopy(snapshot.get("guest", {}))
        for value in vm.drives.values():
            _restore_size(lab, vm, value)
        if snapshot.get("vmstate"):
            powered_on(lab, vm, run)
            if snapshot.get("guest_was_up"):
                vm.guest_up = lab.clock.now()

    locked_work = _locked_work(call, work, beside_migration=False)

    async def worker(run: TaskRun) -> None:
        await locked_work(run)
        vm = lab.vms.located(call.node, call.vmid)
        if call.flag("start") and not vm.running:
            start_task(lab, vm, call.identity.authid)

    return lab.tasks.start(call.node, "qmrollback", str(call.vmid), call.identity.authid, worker)


def _check_latest(lab: Lab, vm: Vm, name: str) -> None:
    """Some storages only go back to the newest snapshot."""
    if vm.config.get("parent") == name:
        return
    for value in vm.drives.values():
        volume = owned_volume(lab, vm, value)
        if volume is not None and lab.storages.get(volume.storage).rolls_back_latest_only:
            raise PveError(f"can't rollback, '{name}' is not most recent snapshot on '{volume.volid}'")


def _restore_size(lab: Lab, vm: Vm, value: str) -> None:
    volume, size = owned_volume(lab, vm, value), parse(value, "file").get("size")
    if volume is not None and size is not None:
        lab.storages.resize(volume, size_bytes(size))


@routes.delete(f"{_PATH}/{{snapname}}", {**_NAME, "force": boolean()}, _SNAPSHOT)
async def delete(call: Call) -> str:
    lab, name = call.lab, call.get("snapname")
    lab.vms.located(call.node, call.vmid)

    async def work(vm: Vm, run: TaskRun) -> None:
        snapshot = _snapshot(vm, name)
        vm.config["lock"] = "snapshot-delete"
        lab.vms.save(vm)
        await run.work(lab.settings.seconds_of("qmdelsnapshot"))
        state = snapshot.get("vmstate")
        if state is not None and (volume := lab.storages.find(vm.node, state)) is not None:
            await lab.storages.free(volume)
        parent = snapshot.get("parent")
        for holder in [vm.config, *vm.snapshots.values()]:
            if holder.get("parent") == name:
                holder.pop("parent")
                if parent is not None:
                    holder["parent"] = parent
        del vm.snapshots[name]

    worker = _locked_work(call, work, beside_migration=False)
    return lab.tasks.start(call.node, "qmdelsnapshot", str(call.vmid), call.identity.authid, worker)
