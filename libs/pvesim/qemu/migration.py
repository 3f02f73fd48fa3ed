"""The work of moving a machine to another node: what hinders it, which disks go along, offline and live."""

import asyncio
from dataclasses import dataclass, field

from libs.pvesim.errors import PveError
from libs.pvesim.lab import Lab
from libs.pvesim.params import split_list
from libs.pvesim.qemu.disks import volume_of
from libs.pvesim.qemu.model import Vm
from libs.pvesim.qemu.options import is_cdrom, is_drive
from libs.pvesim.qemu.properties import parse, render
from libs.pvesim.storage.volume import Volume
from libs.pvesim.tasks import TaskRun

_STEPS = 4
_LOCAL_DEVICES = ("hostpci", "usb", "parallel", "virtiofs")
_ABORTED = "migration aborted"


@dataclass(frozen=True, slots=True)
class LocalDisk:
    """A volume that only the source node reaches, and the option it hangs on."""

    slot: str
    volume: Volume
    cdrom: bool

    @property
    def unused(self) -> bool:
        return self.slot.startswith("unused")


@dataclass(slots=True)
class Plan:
    """One migration. `storages` maps source storages to target ones; the empty key stands for all others."""

    target: str
    online: bool = False
    with_local_disks: bool = False
    storages: dict[str, str] = field(default_factory=dict)

    def storage_for(self, storage_id: str) -> str:
        return self.storages.get(storage_id) or self.storages.get("") or storage_id


def storage_map(text: str | None) -> dict[str, str]:
    """`1` (the same ones), `<storage>` for all, or pairs `<from>:<to>`."""
    found: dict[str, str] = {}
    for item in split_list(text or ""):
        source, _, target = item.partition(":")
        if target:
            found[source] = target
        elif item != "1":
            found[""] = item
    return found


def local_disks(lab: Lab, vm: Vm) -> list[LocalDisk]:
    found = []
    for slot, value in vm.config.items():
        if not is_drive(slot) and not slot.startswith("unused"):
            continue
        volume = volume_of(lab, vm, str(value))
        if volume is not None and not lab.storages.get(volume.storage).shared:
            found.append(LocalDisk(slot, volume, is_cdrom(slot, str(value)) and "cloudinit" not in str(value)))
    return found


def local_resources(vm: Vm) -> list[str]:
    """Devices of the node that a machine uses directly."""
    return sorted(name for name in vm.config if name.rstrip("0123456789") in _LOCAL_DEVICES)


def unavailable_storages(lab: Lab, vm: Vm, node: str, plan: Plan | None = None) -> list[str]:
    """Storages of the machine's disks that the node does not have."""
    missing = set()
    for value in vm.drives.values():
        file = parse(value, "file").get("file", "none")
        if ":" not in file:
            continue
        wanted = file.partition(":")[0]
        wanted = plan.storage_for(wanted) if plan is not None else wanted
        storage = lab.storages.by_id.get(wanted)
        if storage is None or storage.disabled or not lab.storages.serves(storage, node):
            missing.add(wanted)
    return sorted(missing)


async def migrate(lab: Lab, vm: Vm, plan: Plan, run: TaskRun) -> None:
    """Carry a migration out under the machine's locks; raises the task's errors, and cleans up behind them."""
    async with lab.locks.migration(vm.node, vm.vmid), lab.locks.guest(vm.node, vm.vmid):
        vm.check_lock()
        devices = local_resources(vm)
        if devices:
            raise PveError(f"can't migrate VM which uses local devices: {', '.join(devices)}")
        vm.config["lock"] = "migrate"
        lab.vms.save(vm)
        made: list[tuple[LocalDisk, Volume]] = []
        try:
            run.log(f"starting migration of VM {vm.vmid} to node '{plan.target}'")
            await _copy_disks(lab, vm, plan, run, made)
            await _transfer(lab, vm, plan, run)
        except BaseException as cause:
            if not run.killed:
                for _, volume in made:
                    lab.storages.forget(volume)
                vm.config.pop("lock", None)
                lab.vms.save(vm)
            if run.killed or not isinstance(cause, PveError | asyncio.CancelledError):
                raise
            run.log(f"ERROR: {_ABORTED}: {cause.text if isinstance(cause, PveError) else 'interrupted by signal'}")
            raise PveError(_ABORTED) from cause
        await _arrive(lab, vm, plan, run, made)


async def _copy_disks(lab: Lab, vm: Vm, plan: Plan, run: TaskRun, made: list[tuple[LocalDisk, Volume]]) -> None:
    disks = local_disks(lab, vm)
    for disk in disks:
        _check_disk(lab, vm, plan, disk)
    for disk in disks:
        volume = disk.volume
        place = plan.storage_for(volume.storage)
        run.log(f"copying local disk image {volume.volid} to storage {place} on node '{plan.target}'")
        copy = await lab.storages.allocate(
            plan.target, place, vm.vmid, size=volume.size, format=volume.format, used=volume.used, os=volume.os,
            suffix="cloudinit" if "cloudinit" in volume.name else None,
        )  # fmt: skip
        made.append((disk, copy))
        await run.work(lab.settings.seconds_of("qmigrate") / max(1, len(disks)))


def _check_disk(lab: Lab, vm: Vm, plan: Plan, disk: LocalDisk) -> None:
    why = None
    if disk.cdrom:
        why = "can't migrate local cdrom"
    elif vm.running and not plan.with_local_disks and not disk.unused:
        why = "can't live migrate attached local disks without with-local-disks option"
    elif disk.volume.parent is not None:
        why = f"it's a clone of '{disk.volume.parent}'"
    elif disk.volume.is_base and lab.storages.children(disk.volume):
        why = "base image has linked clones"
    if why is not None:
        volid = disk.volume.volid
        raise PveError(f"Problem found while scanning volumes - can't migrate local disk '{volid}': {why}")


async def _transfer(lab: Lab, vm: Vm, plan: Plan, run: TaskRun) -> None:
    """Live, the memory goes over in rounds; offline there is only the configuration to move."""
    if not vm.running:
        await run.work(lab.settings.seconds_of("qmigrate") / _STEPS)
        return
    run.log(f"start migrate command to tcp:{lab.nodes.known(plan.target).address}:60000")
    for step in range(1, _STEPS + 1):
        await run.work(lab.settings.seconds_of("qmigrate") / _STEPS)
        part = vm.memory_mib * step / _STEPS
        run.log(f"migration active, transferred {part:.1f} MiB of {vm.memory_mib:.1f} MiB VM-state")
    if not lab.nodes.known(plan.target).up:
        raise PveError("online migrate failure - aborting")


async def _arrive(lab: Lab, vm: Vm, plan: Plan, run: TaskRun, made: list[tuple[LocalDisk, Volume]]) -> None:
    """The configuration hops over; a live machine goes on in a process of the target node."""
    for disk, volume in made:
        value = str(vm.config[disk.slot])
        moved = parse(value, "file") | {"file": volume.volid}
        vm.config[disk.slot] = volume.volid if disk.unused else render(moved, "file")
    vm.config.pop("lock", None)
    vm.node = plan.target
    if vm.running:
        # The process is another one: its displays end, and its uptime begins again.
        vm.pid, vm.started = run.task.pid, lab.clock.now()
    lab.vms.save(vm)
    for disk, _ in made:
        lab.storages.forget(disk.volume)
    run.log("migration finished successfully")
