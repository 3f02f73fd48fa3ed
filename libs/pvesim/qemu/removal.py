"""Deleting a machine: what refuses it, and everything that goes with it."""

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, locked, only_root
from libs.pvesim.lab import Lab
from libs.pvesim.params import boolean
from libs.pvesim.qemu.disks import owned_volume
from libs.pvesim.qemu.model import Vm
from libs.pvesim.tasks import TaskRun

routes = Routes()


@routes.delete(
    "/nodes/{node}/qemu/{vmid}",
    {"destroy-unreferenced-disks": boolean(), "purge": boolean(), "skiplock": boolean()},
    needs("/vms/{vmid}", "VM.Allocate"),
)
async def destroy(call: Call) -> str:
    lab, vmid, node = call.lab, call.vmid, call.node
    purge, skiplock = call.flag("purge"), call.flag("skiplock")
    if skiplock and not lab.access.is_root(call.identity.authid):
        raise only_root("skiplock")
    _check(lab, lab.vms.configured(node, vmid), purge=purge)

    async def worker(run: TaskRun) -> None:
        async with lab.locks.guest(node, vmid):
            vm = lab.vms.configured(node, vmid)
            _check(lab, vm, purge=purge)
            if vm.lock not in {None, "suspended"} and not skiplock:
                raise locked(str(vm.lock))
            await _remove(lab, run, vm, everything=call.flag("destroy-unreferenced-disks"), purge=purge)

    return lab.tasks.start(node, "qmdestroy", str(vmid), call.identity.authid, worker)


def _check(lab: Lab, vm: Vm, *, purge: bool) -> None:
    if vm.config.get("protection"):
        raise PveError(f"can't remove VM {vm.vmid} - protection mode enabled")
    if lab.ha.resource(vm.vmid) is not None and not purge:
        raise PveError(f"unable to remove VM {vm.vmid} - used in HA resources and purge parameter not set.")
    if vm.running:
        raise PveError(f"VM {vm.vmid} is running - destroy failed")


async def _remove(lab: Lab, run: TaskRun, vm: Vm, *, everything: bool, purge: bool) -> None:
    volumes = {id(volume): volume for value in _references(vm) if (volume := owned_volume(lab, vm, value)) is not None}
    for volume in volumes.values():
        lab.storages.check_unused(volume, "linked cloned")
    await run.work(lab.settings.seconds_of("qmdestroy"))
    if everything:
        volumes |= {id(volume): volume for volume in lab.storages.owned(vm.vmid)}
    for volume in volumes.values():
        try:
            await lab.storages.free(volume)
        except PveError as failure:
            run.warn(f"Could not remove disk '{volume.volid}', check manually: {failure.text}")
    vm.config = {"lock": "destroyed"}
    lab.vms.save(vm)
    lab.access.revoke(f"/vms/{vm.vmid}")
    lab.pools.leave(vm.vmid)
    if purge:
        lab.ha.remove(f"vm:{vm.vmid}")
    lab.vms.remove(vm)


def _references(vm: Vm) -> list[str]:
    """Drive strings and volume ids of the machine and its snapshots."""
    configs = [vm.config, vm.pending, *(snapshot["config"] for snapshot in vm.snapshots.values())]
    found = [str(value) for config in configs for name, value in config.items() if ":" in str(value) and name != "net0"]
    return [*found, *(str(snapshot["vmstate"]) for snapshot in vm.snapshots.values() if snapshot.get("vmstate"))]
