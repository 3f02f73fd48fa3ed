"""Snapshots: taken once whatever crashes, gone back to with the record and the quotas brought along, deleted."""

from typing import Any
from uuid import UUID

from libs.common import quotas
from libs.common.operations import Json, Operation, Saga, Step, StepContext
from libs.common.operations import State as OperationState
from libs.common.uow import UnitOfWork
from services.vms.domain.cluster import carries_mark, mark_of
from services.vms.domain.snapshots import marked, require_takeable
from services.vms.domain.states import State, hostname, seen_as
from services.vms.errors import SnapshotMissing, SnapshotTaken
from services.vms.events import VmFailed, VmUpdated
from services.vms.operations.machines import Machines, start_machine
from services.vms.repository import VmRepository
from services.vms.service.locating import Found
from services.vms.service.records import enter, sizes, tell, touch
from services.vms.service.snapshots import DELETE, ROLL_BACK, TAKE

_TRIES = 30
_LONG_S = 3600.0


class SnapshotWork:
    """The sagas of snapshots."""

    def __init__(self, machines: Machines, *, limit: int) -> None:
        self._machines = machines
        self._limit = limit

    def sagas(self) -> tuple[Saga, ...]:
        def step(name: str, run: Any, timeout_s: float = _LONG_S) -> Step:
            return Step(name, run, timeout_s=timeout_s, max_attempts=_TRIES, interruptible=False)

        return (
            Saga(TAKE, (step("take", self.take),)),
            Saga(
                ROLL_BACK,
                (
                    step("roll_back", self.roll_back),
                    step("claim", self.claim, 300),
                    step("start", self.start, 900),
                    step("look", self.look, 300),
                ),
                on_end=self.went_back,
            ),
            Saga(DELETE, (step("delete", self.delete),)),
        )

    async def take(self, context: StepContext) -> Json:
        """Take it, unless this very operation has: the description says which one took a snapshot."""
        given, found = context.input, await self._found(context)
        name, snapshots = given["name"], found.cluster.snapshots
        tree = await snapshots.tree(found.node, found.vmid)
        known = tree.find(name)
        if known is not None and known.taken_by == context.operation_id and not context.checkpoint.get("take"):
            return {}
        if known is None:
            require_takeable(tree, name, limit=self._limit)
        description = marked(given["description"], context.operation_id)

        async def begin() -> str:
            return await snapshots.take(
                found.node, found.vmid, name, description=description, memory=bool(given["memory"])
            )

        try:
            recall = self._machines.recall(found, "qmsnapshot")
            await self._machines.task(context, found.cluster, "take", begin, recall)
        except SnapshotTaken:
            taken = (await snapshots.tree(found.node, found.vmid)).find(name)
            if taken is None or taken.taken_by != context.operation_id:
                raise
        return {}

    async def roll_back(self, context: StepContext) -> Json:
        """Go back, and see what the machine has then, which counts however the rest ends."""
        vm, name = await self._machines.record(context), context.input["name"]
        if not context.checkpoint.get("back"):  # else it may be back already, in a time without its mark
            await context.save(node=(await self._machines.find(vm)).node)
        cluster, node, vmid = self._machines.fleet.get(vm.cluster), str(context.checkpoint["node"]), vm.vmid or 0

        async def begin() -> str:
            return await cluster.snapshots.roll_back(node, vmid, name)

        async def recall(since: float) -> str | None:
            return await self._machines.look_up(cluster, node, vmid, "qmrollback", since)

        await self._machines.task(context, cluster, "back", begin, recall)
        return {"node": node, "vmid": vmid, "has": (await cluster.config(node, vmid)).sizes}

    async def claim(self, context: StepContext) -> Json:
        """Say again that the machine is Telar's: what came back may be from before Telar knew it, or its name."""
        vm = await self._machines.record(context)
        node, vmid = self._place(context)
        cluster = self._machines.fleet.get(vm.cluster)
        config = await cluster.config(node, vmid)
        options: dict[str, str | int] = {}
        if not carries_mark(config.notes, str(vm.id)):
            options["description"] = f"{config.notes.strip()}\n{mark_of(str(vm.id))}".strip()
        if config.name != hostname(vm.name):
            options["name"] = hostname(vm.name)
        if options:
            await cluster.configure(node, vmid, options, digest=config.digest)
        return {}

    async def start(self, context: StepContext) -> Json:
        if context.input.get("start"):
            found = await self._found(context)
            power = await found.cluster.power(found.node, found.vmid)
            if power.status == "stopped" or context.checkpoint:
                await start_machine(self._machines, context, found, managed=power.managed)
        return {}

    async def look(self, context: StepContext) -> Json:
        """See what the machine does now."""
        found = await self._found(context)
        power = await found.cluster.power(found.node, found.vmid)
        return {"status": power.status, "node": found.node}

    async def delete(self, context: StepContext) -> Json:
        """Delete it; one that is gone is as good."""
        found = await self._found(context)
        name, snapshots = context.input["name"], found.cluster.snapshots
        if (await snapshots.tree(found.node, found.vmid)).find(name) is None and not context.checkpoint.get("delete"):
            return {}

        async def begin() -> str:
            return await snapshots.delete(found.node, found.vmid, name)

        try:
            recall = self._machines.recall(found, "qmdelsnapshot")
            await self._machines.task(context, found.cluster, "delete", begin, recall)
        except SnapshotMissing:
            return {}
        return {}

    async def went_back(self, uow: UnitOfWork, operation: Operation) -> None:
        """Record what the machine has now, and give back what was reserved for more than that."""
        vm = await VmRepository(uow.session).get(UUID(operation.resource_id), for_update=True)
        if vm is None:
            return
        results = {step.name: step.result or {} for step in operation.steps}
        seen: dict[str, Any] = results["look"]
        has: dict[str, int] = results["roll_back"].get("has", {})
        for key, value in has.items():
            setattr(vm, key, value)
        vm.restart_needed = vm.restart_needed and not has
        now = sizes(vm)
        usage = await quotas.release(
            uow.session, vm.owner_id, {name: vm.reserved.get(name, 0) - count for name, count in now.items()}
        )
        vm.reserved = now
        vm.node = seen.get("node", vm.node)
        touch(uow, vm)
        if operation.state is not OperationState.SUCCEEDED:
            vm.reason = str((operation.error or {}).get("detail", operation.message))
            tell(uow, VmFailed, vm, usage)
            return
        vm.reason = None
        tell(uow, VmUpdated, vm, usage)
        state = seen_as(seen["status"])
        if state is not None and State(vm.state).settled:
            enter(uow, vm, state)

    async def _found(self, context: StepContext) -> Found:
        return await self._machines.find(await self._machines.record(context))

    def _place(self, context: StepContext) -> tuple[str, int]:
        done = context.results["roll_back"]
        return str(done["node"]), int(done["vmid"])
