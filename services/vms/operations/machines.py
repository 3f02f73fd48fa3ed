"""What the steps share: finding a machine, proving that it is Telar's, and running a cluster's task exactly once."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from uuid import UUID

import structlog

from libs.common.operations import StepContext, UndoFunction
from libs.common.tasks import cancel
from libs.common.uow import UnitOfWorkFactory
from services.vms.errors import (
    MachineMissing,
    NodeDown,
    OutcomeUnknown,
    ProxmoxBusy,
    ProxmoxFailure,
    ProxmoxRefused,
    ProxmoxUnavailable,
    TaskInterrupted,
    TemplateUnknown,
    TurnedBack,
    VmidTaken,
    VmNotFound,
    WrongPowerState,
)
from services.vms.models import Vm
from services.vms.ports import Cluster
from services.vms.repository import VmRepository
from services.vms.service import Fleet
from services.vms.service.locating import Found, Ours, locate

_log = structlog.get_logger()

_GIB = 1024**3
_HEARTBEAT_S = 1.0
_CLOCK_SKEW_S = 5.0
_RECORD = "record"
_UNTIL_S = 180.0
_LOOK_AGAIN_S = (0.2, 2.0)
Begin = Callable[[], Awaitable[str | None]]
"""Begins a task; gives its UPID, or None if there is nothing left to wait for."""
Recall = Callable[[float], Awaitable[str | None]]
"""Looks for the task that an unanswered call since then (Unix s) may have begun."""


class Machines:
    """The steps' view of records and clusters."""

    def __init__(self, uow: UnitOfWorkFactory, fleet: Fleet, *, settle_s: float) -> None:
        self.uow = uow
        self.fleet = fleet
        self.settle_s = settle_s

    async def record(self, context: StepContext, *, kept: bool = False) -> Vm:
        """The record that the operation works on; raises VmNotFound.

        `kept`: as a step of this run has read it before, if one has. Only operations change what steps look at, and
        one at a time works on a machine; a step that changes it `forget`s it.
        """
        known: Vm | None = context.kept.get(_RECORD) if kept else None
        if known is not None:
            return known
        async with self.uow.looking() as session:
            vm = await VmRepository(session).get(UUID(context.operation.resource_id))
        if vm is None:
            raise VmNotFound("The machine's record is gone")
        context.kept[_RECORD] = vm
        return vm

    def forget(self, context: StepContext) -> None:
        """Have the record read anew: this step changes it."""
        context.kept.pop(_RECORD, None)

    async def find(self, vm: Ours, *, near: str | None = None) -> Found:
        return await locate(self.fleet, vm, near=near)

    async def surely_gone(self, vm: Ours) -> bool:
        """Whether the cluster has no machine of the record's VMID. Raises ProxmoxUnavailable if nobody can tell.

        A token without privileges sees an empty cluster, and a node that is away may come back with it.
        """
        known = await self.fleet.get(vm.cluster).inventory(max_age_s=0)
        if vm.vmid in known.machines:
            return False
        if not known.machines:
            raise ProxmoxUnavailable("The cluster shows no machines at all; that proves nothing", retry_after_s=10)
        return True

    async def task(self, context: StepContext, cluster: Cluster, key: str, begin: Begin, recall: Recall) -> None:
        """Run one task of the cluster to its end, across crashes and lost answers.

        The intent is stored before the call and the UPID after it. A task that failed is forgotten, so that the step
        may begin another one when it is tried again.
        """
        stored = context.checkpoint.get(key) or {}
        upid: str | None = stored.get("upid")
        if upid is None and "intended_at" in stored:
            upid = await recall(stored["intended_at"])
        if upid is None:
            await context.save(**{key: {"intended_at": time.time() - _CLOCK_SKEW_S}})
            try:
                upid = await begin()
            except OutcomeUnknown:
                raise
            except ProxmoxFailure:
                await context.save(**{key: None})
                raise
        if upid is None:
            return
        if stored.get("upid") != upid:
            context.reach(0.5)
            await context.save(**{key: {"upid": upid}})
        try:
            await self.follow(context, cluster, upid)
        except ProxmoxFailure:
            await context.save(**{key: None})
            raise

    async def follow(self, context: StepContext, cluster: Cluster, upid: str) -> None:
        """Wait for a task, telling that the step is alive; raises TurnedBack when its owner cancels."""
        waiting = asyncio.create_task(cluster.wait(upid), name=f"wait {upid}")
        try:
            while not (await asyncio.wait({waiting}, timeout=_HEARTBEAT_S))[0]:
                await context.progress(0.5)
                if context.cancelled and not context.operation.direction == "backward":
                    raise TurnedBack("Cancelled while the cluster was at work")
            await waiting
        finally:
            await cancel(waiting)

    async def stop(self, context: StepContext, found: Found, *, suffix: str = "") -> None:
        """Cut a machine's power, unless it is off. `suffix` tells machines apart that one step works on."""
        power = await found.cluster.power(found.node, found.vmid)
        if power.status == "stopped" and not context.checkpoint.get(f"stop{suffix}"):
            return
        # The HA manager stops its machines itself, and knows no such option.
        options = {} if power.managed else {"overrule-shutdown": 1}

        async def begin() -> str:
            return await found.cluster.act(found.node, found.vmid, "stop", options)

        kind = "hastop" if power.managed else "qmstop"
        await self.task(context, found.cluster, f"stop{suffix}", begin, self.recall(found, kind))
        if power.managed:
            await self.until(context, found, "stopped")

    async def until(self, context: StepContext, found: Found, status: str) -> None:
        """Wait until a machine's process is seen so: the HA manager only takes note of a wish, and acts in rounds.

        Raises ProxmoxRefused if it never is.
        """
        deadline, node = time.time() + _UNTIL_S, found.node
        looks = look_again()
        while True:
            try:
                if (await found.cluster.power(node, found.vmid)).status == status:
                    return
            except (MachineMissing, NodeDown):  # the manager may have taken it to another node
                machine = (await found.cluster.inventory(max_age_s=0)).machines.get(found.vmid)
                node = node if machine is None else machine.node
            if time.time() > deadline:
                raise ProxmoxRefused(f"The machine was not {status} in time", node=node)
            await context.progress(0.5)
            await asyncio.sleep(next(looks))

    async def destroy(self, context: StepContext, found: Found, *, suffix: str = "") -> None:
        """Remove a machine that is off, with its disks."""
        key = f"destroy{suffix}"

        async def begin() -> str:
            return await found.cluster.destroy(found.node, found.vmid)

        try:
            await self.task(context, found.cluster, key, begin, self.recall(found, "qmdestroy"))
        except WrongPowerState:  # somebody started it meanwhile
            await context.save(**{f"stop{suffix}": None})
            await self.stop(context, found, suffix=suffix)
            await self.task(context, found.cluster, key, begin, self.recall(found, "qmdestroy"))

    async def break_off(self, context: StepContext, cluster: Cluster, upid: str) -> None:
        """Interrupt a task, and wait for its end, whatever that is."""
        await cluster.interrupt(upid)
        try:
            await self.follow(context, cluster, upid)
        except (ProxmoxRefused, TaskInterrupted, ProxmoxBusy, VmidTaken) as error:
            _log.info("task_broken_off", upid=upid, error=error.slug)

    def recall(self, found: Found, kind: str) -> Recall:
        """Look a machine's own task up by its kind and time."""

        async def look(since: float) -> str | None:
            return await self.look_up(found.cluster, found.node, found.vmid, kind, since)

        return look

    async def look_up(self, cluster: Cluster, node: str, vmid: int, kind: str, since: float) -> str | None:
        """The UPID of a task of a machine since then, once its effect has had the time to show; None without one."""
        deadline = time.time() + self.settle_s
        while True:
            upids = await cluster.tasks(node, vmid, kind, since=since)
            if upids:
                return upids[0]
            if time.time() > min(deadline, since + _CLOCK_SKEW_S + self.settle_s):
                return None
            await asyncio.sleep(self.settle_s / 5)


def unless_gone(undo: UndoFunction) -> UndoFunction:
    """Undo for a record that there is: with one that was deleted meanwhile, all of it was removed."""

    async def run(context: StepContext) -> None:
        try:
            await undo(context)
        except (VmNotFound, TemplateUnknown) as error:
            _log.info("nothing_to_undo", resource_id=context.operation.resource_id, reason=error.slug)

    return run


def look_again() -> Iterator[float]:
    """Seconds to wait before each further look: short ones first, since most things are so at once or soon."""
    delay_s, longest_s = _LOOK_AGAIN_S
    while True:
        yield delay_s
        delay_s = min(longest_s, delay_s * 1.5)


async def grow_disk(machines: Machines, context: StepContext, found: Found, gib: int) -> None:
    """Bring the boot disk to a size in GiB, unless it has it; an absolute size may be asked for twice."""
    slot = found.config.boot_disk
    if slot is None:
        raise ProxmoxRefused("The machine has no disk to grow", node=found.node)
    if found.config.disks[slot] >= gib * _GIB and not context.checkpoint.get("resize"):
        return

    async def begin() -> str | None:
        return await found.cluster.resize(found.node, found.vmid, slot, gib)

    await machines.task(context, found.cluster, "resize", begin, machines.recall(found, "resize"))


async def start_machine(machines: Machines, context: StepContext, found: Found, *, managed: bool = False) -> None:
    """Start a machine; one that runs already is as good. One `managed` by HA is asked for, and waited for."""

    async def begin() -> str:
        return await found.cluster.act(found.node, found.vmid, "start", {})

    recall = machines.recall(found, "hastart" if managed else "qmstart")
    try:
        await machines.task(context, found.cluster, "start", begin, recall)
    except WrongPowerState as error:
        if "already running" not in error.reason:
            raise
    if managed:
        await machines.until(context, found, "running")


async def reaching(cluster: Cluster, storage: str, node: str | None) -> str:
    """A node from which a storage's files can be seen to: that one while it is online, else another if it is shared.

    Raises ProxmoxUnavailable if there is none.
    """
    known = await cluster.inventory(max_age_s=0)
    seen = [one for (one, name), found in known.storages.items() if name == storage and (found.shared or one == node)]
    online = sorted(one for one in seen if known.online(one))
    if not online:
        raise ProxmoxUnavailable(f"No node that answers sees the storage {storage}", retry_after_s=10)
    return node if node in online else online[0]
