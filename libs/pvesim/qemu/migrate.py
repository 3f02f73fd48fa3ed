"""The calls that move machines between nodes; a managed machine's request goes to the HA manager."""

from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, only_root, parameter_error
from libs.pvesim.params import NODE, NODE_OPTIONAL, boolean, integer, one_of, text
from libs.pvesim.qemu.migration import (
    Plan,
    local_disks,
    local_resources,
    migrate,
    storage_map,
    unavailable_storages,
)
from libs.pvesim.qemu.model import Vm
from libs.pvesim.tasks import TaskRun

routes = Routes()
_PATH = "/nodes/{node}/qemu/{vmid}/migrate"
_MIGRATE = needs("/vms/{vmid}", "VM.Migrate")
_CIDR = text(pattern=r"[0-9a-fA-F.:]+/\d{1,3}")
_ROOT_ONLY = ("force", "migration_type", "migration_network")


@routes.get(_PATH, {"target": NODE_OPTIONAL}, _MIGRATE)
async def preconditions(call: Call) -> dict[str, Any]:
    """What a migration would meet. Where it may go was only told of machines that are off before release 9."""
    lab = call.lab
    vm = lab.vms.configured(call.node, call.vmid)
    vm.check_lock()
    told: dict[str, Any] = {
        "running": int(vm.running),
        "local_disks": [
            {
                "volid": disk.volume.volid,
                "size": disk.volume.size,
                "cdrom": int(disk.cdrom),
                "is_unused": int(disk.unused),
                "drivename": disk.slot,
            }
            for disk in local_disks(lab, vm)
        ],
        "local_resources": local_resources(vm),
        "mapped-resources": [],
        "mapped-resource-info": {},
        "has-dbus-vmstate": 0,
    }
    if vm.running and not lab.settings.release.has((9,)):
        return told
    refused = {}
    for node in lab.nodes:
        missing = unavailable_storages(lab, vm, node.name)
        if missing and node.name != vm.node and call.get("target") in {None, node.name}:
            refused[node.name] = {"unavailable_storages": missing}
    others = [node.name for node in lab.nodes if node.name != vm.node]
    told["allowed_nodes"] = [name for name in others if name not in refused]
    return told | ({"not_allowed_nodes": refused} if refused else {})


@routes.post(
    _PATH,
    {
        "target": NODE,
        "bwlimit": integer(0),
        "force": boolean(),
        "migration_network": _CIDR,
        "migration_type": one_of("secure", "insecure"),
        "online": boolean(),
        "targetstorage": text(),
        "with-conntrack-state": boolean(0, since=(9,)),
        "with-local-disks": boolean(),
    },
    _MIGRATE,
)
async def move(call: Call) -> str:
    lab, target = call.lab, call.get("target")
    if target == call.node:
        raise parameter_error("target", "target is local node.")
    lab.check_quorum()
    lab.nodes.known(target)
    for name in _ROOT_ONLY:
        if call.get(name) and not lab.access.is_root(call.identity.authid):
            raise only_root(name)
    vm = lab.vms.configured(call.node, call.vmid)
    vm.check_lock()
    online = call.flag("online")
    if vm.running and not online:
        raise PveError("can't migrate running VM without --online")
    plan = Plan(target, online and vm.running, call.flag("with-local-disks"), storage_map(call.get("targetstorage")))
    _check_storages(call, vm, plan)
    if lab.ha.manages(vm.vmid):
        return _ask_ha(call, vm, target)

    async def worker(run: TaskRun) -> None:
        await migrate(lab, vm, plan, run)

    return lab.tasks.start(call.node, "qmigrate", str(vm.vmid), call.identity.authid, worker)


def _check_storages(call: Call, vm: Vm, plan: Plan) -> None:
    for storage in unavailable_storages(call.lab, vm, plan.target, plan):
        call.lab.storages.usable(storage, plan.target)
    for storage in plan.storages.values():
        call.lab.storages.usable(storage, plan.target)
        call.require(f"/storage/{storage}", "Datastore.AllocateSpace")


def _ask_ha(call: Call, vm: Vm, target: str) -> str:
    lab = call.lab

    async def worker(run: TaskRun) -> None:
        run.log(f"Requesting HA migration for VM {vm.vmid} to node {target}")
        lab.ha.order(vm.vmid, "migrate", target)

    return lab.tasks.start(call.node, "hamigrate", str(vm.vmid), call.identity.authid, worker)
