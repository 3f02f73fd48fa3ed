"""What one round of the manager does with one resource: start, stop, move, recover, give up."""

from typing import Any

from libs.pvesim.access.accounts import ROOT
from libs.pvesim.ha.manager import Service
from libs.pvesim.lab import Lab
from libs.pvesim.qemu.migration import Plan, migrate
from libs.pvesim.qemu.model import Vm
from libs.pvesim.qemu.power_work import HA_LINE, ha_start, ha_stop, powered_off
from libs.pvesim.tasks import TaskRun


async def advance(lab: Lab, sid: str) -> None:
    """Bring a resource one step nearer to what is wished for it."""
    resource, vm = lab.ha.resources.get(sid), lab.vms.by_id.get(int(sid.split(":")[1]))
    if resource is None or vm is None or resource["state"] == "ignored":
        return
    service = lab.ha.services.setdefault(sid, Service())
    if service.state == "error":
        if resource["state"] == "disabled":
            service.failed_starts = service.moves = 0
            lab.ha.enter(sid, "stopped")
        return
    if not lab.nodes.by_name[vm.node].up:
        _recover(lab, sid, vm)
        return
    if service.order is not None:
        await _obey(lab, sid, service, vm)
        return
    if not _drawn_away(lab, sid, vm):
        await _follow_wish(lab, sid, service, vm, resource)


async def _follow_wish(lab: Lab, sid: str, service: Service, vm: Vm, resource: dict[str, Any]) -> None:
    """Start or stop as the resource asks for it."""
    wanted = resource["state"] in {"started", "enabled"}
    if wanted and not vm.running:
        if await _start(lab, sid, service, vm, resource):
            return
    elif not wanted and vm.running:
        await lab.tasks.wait(ha_stop(lab, vm, resource.get("timeout")))
    if sid in lab.ha.resources:
        waiting = "request_start" if wanted else "stopped"
        lab.ha.enter(sid, "started" if vm.running else waiting)


def _recover(lab: Lab, sid: str, vm: Vm) -> None:
    """A dead node's machine waits until its node is fenced, then goes to another one; its disks must be there."""
    if lab.nodes.statistics_age(lab.nodes.by_name[vm.node]) < lab.settings.ha_fence_s:
        lab.ha.enter(sid, "fence")
        return
    lab.ha.enter(sid, "recovery")
    target = lab.ha.choose(sid, without=vm.node)
    if target is not None:
        vm.node = target
        powered_off(lab, vm)


async def _start(lab: Lab, sid: str, service: Service, vm: Vm, resource: dict[str, Any]) -> bool:
    """Start a machine; after too many failures elsewhere, and after too many moves not at all.

    Returns whether the resource is in another state now.
    """
    node, upid = vm.node, ha_start(lab, vm)
    await lab.tasks.wait(upid)
    task = lab.tasks.find(node, upid)
    if task is None or not task.failed:
        service.failed_starts = service.moves = 0
        return False
    if not lab.nodes.by_name[node].up:
        return False
    service.failed_starts += 1
    if service.failed_starts <= int(resource["max_restart"]):
        return False
    service.failed_starts, service.moves = 0, service.moves + 1
    target = lab.ha.choose(sid, without=vm.node)
    if service.moves > int(resource["max_relocate"]) or target is None:
        lab.ha.enter(sid, "error")
    else:
        service.order, service.target = "relocate", target
        lab.ha.enter(sid, "relocate")
    return True


async def _obey(lab: Lab, sid: str, service: Service, vm: Vm) -> None:
    """Carry a migration or relocation out; a relocation stops the machine first and starts it there again."""
    kind, target = service.order, service.target
    service.order = service.target = None
    if target is not None and target != vm.node and lab.nodes.known(target).up:
        lab.ha.enter(sid, str(kind))
        if kind == "relocate" and vm.running:
            await lab.tasks.wait(ha_stop(lab, vm, None))
        await lab.tasks.wait(_migrate(lab, vm, target))
    lab.ha.enter(sid, "started" if vm.running else "request_start")
    lab.ha.wake()


def _migrate(lab: Lab, vm: Vm, target: str) -> str:
    plan = Plan(target, online=vm.running, with_local_disks=True)

    async def worker(run: TaskRun) -> None:
        run.log(HA_LINE)
        await migrate(lab, vm, plan, run)

    return lab.tasks.start(vm.node, "qmigrate", str(vm.vmid), ROOT, worker)


def _drawn_away(lab: Lab, sid: str, vm: Vm) -> bool:
    """Order the machine to a node of higher priority, if there is one and the resource or its group may go back."""
    resource = lab.ha.resources[sid]
    group = lab.ha.groups.get(str(resource.get("group")), {})
    wish, best = lab.ha.wish(sid), lab.ha.choose(sid)
    stays = not resource.get("failback", 1) or group.get("nofailback")
    if stays or best is None or wish.priority(best) <= wish.priority(vm.node):
        return False
    lab.ha.order(vm.vmid, "migrate", best)
    return True
