"""The step that clones a template, once whatever crashes, and its undoing, which leaves nothing behind."""

import asyncio
import time

from libs.common.operations import Json, RetryFrom, StepContext
from services.vms.domain.cluster import Machine, Template, mark_of
from services.vms.domain.states import hostname
from services.vms.errors import (
    MachineMissing,
    MachineNotOurs,
    NodeDown,
    NoNodeFits,
    ProxmoxFailure,
    TaskInterrupted,
    VmidTaken,
)
from services.vms.models import Vm
from services.vms.operations.failover import elsewhere
from services.vms.operations.machines import Machines
from services.vms.ports import Cluster
from services.vms.service import Vmids

_COLLISIONS = 50


class _Adopted(Exception):
    pass


class Cloning:
    """Runs and undoes the step `clone` of `vm.create`."""

    def __init__(self, machines: Machines, vmids: Vmids) -> None:
        self._machines = machines
        self._vmids = vmids

    async def run(self, context: StepContext) -> Json:
        """Clone under the machine's own VMID and mark, so that a clone can be known again whoever lost its UPID."""
        vm = await self._machines.record(context, kept=True)
        if vm.vmid is None:
            vm.vmid = await self._vmids.ensure(vm.id)
        vmid = vm.vmid
        cluster, place = self._machines.fleet.get(vm.cluster), context.results["place"]
        template = await self._template(cluster, place)
        target = str(place["node"])

        async def begin() -> str:
            return await cluster.clone(template, vmid, name=hostname(vm.name), notes=mark_of(str(vm.id)), target=target)

        async def recall(_since: float) -> str | None:
            if await self._appeared(context, vm) is not None:
                raise _Adopted
            return None

        try:
            await self._machines.task(context, cluster, "clone", begin, recall)
        except _Adopted:
            target = await self._where(vm, target)
        except VmidTaken:
            if await self._appeared(context, vm) is None:
                await self._another_vmid(context, vm)
            target = await self._where(vm, target)
        except ProxmoxFailure as error:
            raise elsewhere(context, error, node=target) from error
        return {"node": target, "vmid": vmid}

    async def undo(self, context: StepContext) -> None:
        """Undo the clone: nothing of it stays, and what cannot be removed now keeps its VMID for the sweep."""
        if not context.checkpoint and not context.result:
            return
        vm = await self._machines.record(context)
        stored = context.checkpoint.get("clone") or {}
        cluster = self._machines.fleet.get(vm.cluster)
        place = context.results.get("place", {})
        try:
            if stored.get("upid") and not context.result:
                await self._machines.break_off(context, cluster, stored["upid"])
            if await self._machines.surely_gone(vm):
                if "intended_at" in stored:  # an unanswered clone may still show
                    await self._leave_behind(context, vm, place.get("source"), "the outcome of its clone is not known")
                return
            found = await self._machines.find(vm, near=context.result.get("node"))
            if found.config.lock is not None:
                await self._leave_behind(context, vm, found.node, f"locked: {found.config.lock}")
                return
            if found.config.protected:  # as its template is
                options = {"protection": 0}
                await cluster.configure(found.node, found.vmid, options, digest=found.config.digest)
            await self._machines.stop(context, found)
            await self._machines.destroy(context, found)
        except MachineMissing:
            return
        except MachineNotOurs as error:
            await self._give_up(context, vm, foreign=True, node=error.node, reason="not ours")
        except (NodeDown, TaskInterrupted) as error:
            await self._leave_behind(context, vm, error.node, error.detail)

    async def _template(self, cluster: Cluster, place: Json) -> Template:
        for template in await cluster.templates(max_age_s=30):
            if template.vmid == place["template"]:
                return template
        raise RetryFrom("place", reason="The template's copy is gone")

    async def _appeared(self, context: StepContext, vm: Vm) -> Machine | None:
        """Wait for a clone that was perhaps begun: it shows within a while or it never does.

        Gives the machine once it is whole, None if there is none or it is somebody else's.
        """
        cluster = self._machines.fleet.get(vm.cluster)
        deadline = time.time() + self._machines.settle_s
        while True:
            machine = (await cluster.inventory(max_age_s=0)).machines.get(vm.vmid or 0)
            if machine is None and time.time() > deadline:
                return None
            if machine is not None and machine.lock is None:
                try:
                    await self._machines.find(vm, near=machine.node)
                except MachineNotOurs:
                    return None
                except MachineMissing:  # it hops to its target at this very moment
                    machine = None
                else:
                    return machine
            await context.progress(0.5)
            await asyncio.sleep(self._machines.settle_s / 10)

    async def _where(self, vm: Vm, target: str) -> str:
        return (await self._machines.find(vm, near=target)).node

    async def _another_vmid(self, context: StepContext, vm: Vm) -> None:
        """A stranger has the VMID: leave it to them and go on with another one."""
        collisions = int(context.memo.get("collisions", 0)) + 1
        context.memo["collisions"] = collisions
        await self._give_up(context, vm, foreign=True, node=None, reason="taken by another machine")
        if collisions > _COLLISIONS:
            raise NoNodeFits("Too many VMIDs of Telar's range are in use by others; an operator must give it a range")
        raise RetryFrom("clone", undo=False, reason="The VMID was taken; going on with another one")

    async def _leave_behind(self, context: StepContext, vm: Vm, node: str | None, reason: str) -> None:
        await self._give_up(context, vm, foreign=False, node=node, reason=reason)

    async def _give_up(self, context: StepContext, vm: Vm, *, foreign: bool, node: str | None, reason: str) -> None:
        self._machines.forget(context)
        await self._vmids.give_up(vm.id, foreign=foreign, node=node, reason=reason)
