"""Conversion to a template, growing of disks, unlinking, and what a machine's storage can do."""

from collections.abc import Awaitable, Callable
from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, only_root, parameter_error
from libs.pvesim.lab import Lab
from libs.pvesim.params import DIGEST, OPTION_LIST, SNAPNAME, Param, boolean, one_of, split_list, text
from libs.pvesim.qemu.disks import can_link, can_snapshot, owned_volume, volume_of
from libs.pvesim.qemu.model import Vm
from libs.pvesim.qemu.options import DRIVES, is_cdrom
from libs.pvesim.qemu.properties import parse, render, size_bytes, size_text
from libs.pvesim.qemu.update import remove_option
from libs.pvesim.tasks import TaskRun

routes = Routes()
_PATH = "/nodes/{node}/qemu/{vmid}"
_DISK = Param(enum=tuple(sorted(DRIVES)))
_SIZE = text(pattern=r"\+?\d+(\.\d+)?[KMGT]?").must()


@routes.post(f"{_PATH}/template", {"disk": _DISK}, needs("/vms/{vmid}", "VM.Allocate"))
async def convert(call: Call) -> str:
    lab = call.lab
    vm = lab.vms.located(call.node, call.vmid)
    vm.check_lock()
    _check_convertible(vm)

    async def worker(run: TaskRun) -> None:
        async with lab.locks.guest(vm.node, vm.vmid):
            vm.check_lock()
            _check_convertible(vm)
            await run.work(lab.settings.seconds_of("qmtemplate"))
            only = call.get("disk")
            for slot, value in vm.drives.items():
                volume = owned_volume(lab, vm, value)
                if volume is not None and not is_cdrom(slot, value) and only in {None, slot}:
                    base = lab.storages.make_base(volume)
                    vm.config[slot] = render(parse(value, "file") | {"file": base.volid}, "file")
            vm.config["template"] = 1
            lab.vms.save(vm)

    return lab.tasks.start(call.node, "qmtemplate", str(vm.vmid), call.identity.authid, worker)


def _check_convertible(vm: Vm) -> None:
    if vm.template:
        raise PveError("you can't convert a template to a template")
    if vm.snapshots:
        raise PveError("unable to create template, because VM contains snapshots")
    if vm.running:
        raise PveError("you can't convert a VM to template if VM is running")


@routes.put(
    f"{_PATH}/resize",
    {"disk": _DISK.must(), "size": _SIZE, "digest": DIGEST, "skiplock": boolean()},
    needs("/vms/{vmid}", "VM.Config.Disk"),
)
async def resize(call: Call) -> str | None:
    """Grow a disk: in a task, which before release 8 had to be waited for."""
    lab = call.lab
    if call.flag("skiplock") and not lab.access.is_root(call.identity.authid):
        raise only_root("skiplock")
    vm = lab.vms.located(call.node, call.vmid)

    async def grow(spend: Callable[[float], Awaitable[None]]) -> None:
        async with lab.locks.guest(vm.node, vm.vmid):
            if call.get("digest") not in {None, vm.digest()}:
                raise PveError(lab.settings.release.digest_mismatch)
            vm.check_lock()
            await spend(lab.settings.seconds_of("resize"))
            _grow(lab, vm, call.get("disk"), call.get("size"))

    if not lab.settings.release.resizes_in_a_task:
        await grow(lab.clock.sleep)
        return None

    async def worker(run: TaskRun) -> None:
        await grow(run.work)

    return lab.tasks.start(call.node, "resize", str(vm.vmid), call.identity.authid, worker)


def _grow(lab: Lab, vm: Vm, disk: str, wanted: str) -> None:
    value = vm.drives.get(disk)
    if value is None:
        raise PveError(f"disk '{disk}' does not exist")
    if is_cdrom(disk, value):
        raise PveError("you can't resize a cdrom")
    volume = volume_of(lab, vm, value)
    if volume is None:
        raise PveError(f"volume '{parse(value, 'file')['file']}' does not exist")
    size = size_bytes(wanted.removeprefix("+"))
    size = volume.size + size if wanted.startswith("+") else size
    if size < volume.size:
        raise PveError("shrinking disks is not supported")
    if size > volume.size:
        lab.storages.resize(volume, size)
        vm.config[disk] = render(parse(value, "file") | {"size": size_text(size)}, "file")
        lab.vms.save(vm)


@routes.put(
    f"{_PATH}/unlink", {"idlist": OPTION_LIST.must(), "force": boolean()}, needs("/vms/{vmid}", "VM.Config.Disk")
)
async def unlink(call: Call) -> None:
    lab = call.lab
    vm = lab.vms.located(call.node, call.vmid)
    names = split_list(call.get("idlist"))
    for name in names:
        if name not in DRIVES and not name.startswith("unused"):
            raise parameter_error("idlist", f"unknown option '{name}'")
    async with lab.locks.guest(vm.node, vm.vmid):
        vm.check_lock()
        for name in names:
            if name in vm.config:
                await remove_option(lab, vm, name, force=call.flag("force"))
        lab.vms.save(vm)


@routes.get(
    f"{_PATH}/feature",
    {"feature": one_of("snapshot", "clone", "copy").must(), "snapname": SNAPNAME},
    needs("/vms/{vmid}", "VM.Audit"),
)
async def feature(call: Call) -> dict[str, Any]:
    lab = call.lab
    vm = lab.vms.configured(call.node, call.vmid)
    volumes = [
        volume for slot, value in vm.drives.items()
        if not is_cdrom(slot, value) and (volume := volume_of(lab, vm, value)) is not None
    ]  # fmt: skip
    wanted = call.get("feature")
    linkable = all(can_link(lab, volume, call.get("snapname")) for volume in volumes)
    has = {"snapshot": can_snapshot(lab, vm), "clone": linkable, "copy": True}[wanted]
    everywhere = all(lab.storages.get(volume.storage).shared for volume in volumes)
    nodes = [node.name for node in lab.nodes] if everywhere else [vm.node]
    return {"hasFeature": int(has), "nodes": nodes}
