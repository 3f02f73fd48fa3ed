"""Moving a disk to another storage, and handing one over to another machine."""

from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, parameter_errors
from libs.pvesim.lab import Lab
from libs.pvesim.params import DIGEST, STORAGE, VMID_OPTIONAL, Param, boolean, integer, one_of
from libs.pvesim.qemu.disks import check_storage, detach, volume_of
from libs.pvesim.qemu.model import Vm
from libs.pvesim.qemu.options import DRIVES, UNUSED_COUNT, is_cdrom, is_drive
from libs.pvesim.qemu.properties import parse, render, size_text
from libs.pvesim.storage.volume import Volume
from libs.pvesim.tasks import TaskRun

routes = Routes()
_SLOTS = Param(enum=(*sorted(DRIVES), *(f"unused{i}" for i in range(UNUSED_COUNT))))
_STEPS = 4
_MISMATCH = "detected modified configuration - file changed by other user? Try again."


@routes.post(
    "/nodes/{node}/qemu/{vmid}/move_disk",
    {
        "disk": _SLOTS.must(),
        "bwlimit": integer(0),
        "delete": boolean(0),
        "digest": DIGEST,
        "format": one_of("raw", "qcow2", "vmdk"),
        "storage": STORAGE,
        "target-digest": DIGEST,
        "target-disk": _SLOTS,
        "target-vmid": VMID_OPTIONAL,
    },
    needs("/vms/{vmid}", "VM.Config.Disk"),
)
async def move(call: Call) -> str:
    has_vm, has_storage = "target-vmid" in call.params, "storage" in call.params
    if has_vm == has_storage:
        why = (
            "either set 'storage' or 'target-vmid', but not both"
            if has_vm
            else "both 'storage' and 'target-vmid' missing, either needs to be set"
        )
        raise parameter_errors({"storage": why, "target-vmid": why})
    return _to_vm(call) if has_vm else _to_storage(call)


def _disk(lab: Lab, vm: Vm, slot: str) -> Volume:
    """The volume on a slot; raises what is wrong with it."""
    value = vm.config.get(slot)
    if value is None:
        raise PveError(f"disk '{slot}' does not exist")
    if is_cdrom(slot, str(value)):
        raise PveError("you can't move a cdrom")
    return lab.storages.require(vm.node, parse(str(value), "file")["file"])


def _to_storage(call: Call) -> str:
    lab, slot, storage_id = call.lab, call.get("disk"), call.get("storage")
    vm = lab.vms.located(call.node, call.vmid)
    call.require(f"/storage/{storage_id}", "Datastore.AllocateSpace")
    storage = check_storage(lab, call.node, storage_id)
    if call.get("digest") not in {None, vm.digest()}:
        raise PveError(_MISMATCH)
    vm.check_lock()
    source = _disk(lab, vm, slot)
    wanted = call.get("format") or (source.format if source.format in storage.formats else storage.formats[0])
    if source.storage == storage_id and wanted == source.format:
        raise PveError("you can't move to the same storage with same format")
    delete = call.flag("delete")
    if delete and any(slot in snapshot["config"] for snapshot in vm.snapshots.values()):
        raise PveError("you can't move a disk with snapshots and delete the source")

    async def worker(run: TaskRun) -> None:
        async with lab.locks.guest(vm.node, vm.vmid):
            vm.check_lock()
            try:
                volume = await _copy(lab, vm, run, source, storage_id, wanted)
            except PveError as failure:
                raise PveError(f"storage migration failed: {failure.text}") from failure
            await _swap(lab, vm, slot, volume, source, delete=delete)

    return lab.tasks.start(call.node, "qmmove", str(vm.vmid), call.identity.authid, worker)


async def _copy(lab: Lab, vm: Vm, run: TaskRun, source: Volume, storage_id: str, image_format: str) -> Volume:
    run.log(f"create full clone of drive ({source.volid})")
    made = await lab.storages.allocate(
        vm.node, storage_id, vm.vmid, size=source.size, format=image_format, used=source.used, os=source.os
    )
    try:
        for step in range(1, _STEPS + 1):
            await run.work(lab.settings.seconds_of("qmmove") / _STEPS)
            run.log(f"transferred {size_text(source.size * step // _STEPS)} of {size_text(source.size)}")
    except BaseException:
        if not run.killed:
            lab.storages.forget(made)
        raise
    return made


async def _swap(lab: Lab, vm: Vm, slot: str, volume: Volume, source: Volume, *, delete: bool) -> None:
    """Put the copy on the slot; the source is freed, or kept as unused."""
    properties = parse(str(vm.config[slot]), "file") | {"file": volume.volid}
    if not delete:
        detach(vm, slot)
    vm.config[slot] = render(properties, "file") if is_drive(slot) else volume.volid
    lab.vms.save(vm)
    if delete:
        await lab.storages.free(source)


def _to_vm(call: Call) -> str:
    lab, slot = call.lab, call.get("disk")
    target_id = int(call.get("target-vmid"))
    target_slot = call.get("target-disk", slot)
    call.require(f"/vms/{target_id}", "VM.Config.Disk")
    vm, target = lab.vms.located(call.node, call.vmid), lab.vms.located(call.node, target_id)
    for machine, digest in ((vm, call.get("digest")), (target, call.get("target-digest"))):
        if digest not in {None, machine.digest()}:
            raise PveError(f"VM {machine.vmid}: checksum mismatch (file change by other user?)")
        machine.check_lock()
    _check_handover(lab, vm, slot, target, target_slot)

    async def worker(run: TaskRun) -> None:
        async with lab.locks.guest(vm.node, vm.vmid), lab.locks.guest(target.node, target_id):
            volume = _check_handover(lab, vm, slot, target, target_slot)
            await run.work(lab.settings.seconds_of("resize"))
            properties: dict[str, Any] = parse(str(vm.config.pop(slot)), "file")
            moved = await lab.storages.hand_over(volume, target_id)
            stored = render(properties | {"file": moved.volid}, "file")
            target.config[target_slot] = stored if is_drive(target_slot) else moved.volid
            lab.vms.save(vm)
            lab.vms.save(target)

    subject = f"{vm.vmid}-{slot}>{target_id}-{target_slot}"
    return lab.tasks.start(call.node, "qmmove", subject, call.identity.authid, worker)


def _check_handover(lab: Lab, vm: Vm, slot: str, target: Vm, target_slot: str) -> Volume:
    volume = _disk(lab, vm, slot)
    if target_slot in target.config:
        raise PveError(f"Target disk key '{target_slot}' is already in use for VM '{target.vmid}'")
    if volume.is_base or volume.parent is not None:
        raise PveError("Can't reassign disk of linked clone or template")
    if vm.running and not slot.startswith("unused"):
        raise PveError("Cannot move disk of running VM to another VM")
    if volume_of(lab, vm, str(vm.config[slot])) is None:
        raise PveError(f"volume '{volume.volid}' does not exist")
    return volume
