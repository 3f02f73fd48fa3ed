"""Power actions: one saga each; what is already as wished is left as it is."""

import asyncio
import time
from uuid import UUID

from libs.common.operations import Json, Operation, Saga, Step, StepContext
from libs.common.operations import State as OperationState
from libs.common.uow import UnitOfWork
from services.vms.domain.cluster import Power
from services.vms.domain.states import AFTER, Action, State, seen_as
from services.vms.errors import MachineMissing, NodeDown, ProxmoxRefused, VmState, WrongPowerState
from services.vms.events import VmFailed, VmUpdated
from services.vms.operations.machines import Machines, look_again
from services.vms.repository import VmRepository
from services.vms.service.locating import Found
from services.vms.service.records import enter, tell, touch

_TRIES = 30
_CONFIRM_S = 120.0
_MANAGED_CONFIRM_S = 400.0
"""The HA manager acts in rounds, and may have to fence a node before it starts a machine elsewhere."""
_VERBS = {Action.PAUSE: "suspend"}
_TO_DISK = {"todisk": 1}
_TASKS = {
    Action.START: "qmstart",
    Action.SHUTDOWN: "qmshutdown",
    Action.STOP: "qmstop",
    Action.REBOOT: "qmreboot",
    Action.PAUSE: "qmpause",
    Action.RESUME: "qmresume",
    Action.SUSPEND: "qmsuspend",
}
_MANAGED = {Action.START: "hastart", Action.SHUTDOWN: "hastop"}
"""What the same is called of a machine that the HA manager has."""


class PowerAction:
    """The steps of `vm.start`, `vm.shutdown` and so on."""

    def __init__(self, action: Action, machines: Machines, *, shutdown_timeout_s: int) -> None:
        self._action = action
        self._machines = machines
        asks_guest = action in (Action.SHUTDOWN, Action.REBOOT)
        self._options: dict[str, int] = {"timeout": shutdown_timeout_s} if asks_guest else {}
        if action is Action.SUSPEND:
            self._options = _TO_DISK

    def saga(self) -> Saga:
        return Saga(
            f"vm.{self._action}",
            (
                Step(str(self._action), self.act, timeout_s=900, max_attempts=_TRIES, interruptible=False),
                Step("confirm", self.confirm, timeout_s=600, max_attempts=_TRIES, interruptible=False),
            ),
            on_end=self.end,
        )

    async def act(self, context: StepContext) -> Json:
        found = await self._machines.find(await self._machines.record(context))
        power = await found.cluster.power(found.node, found.vmid)
        if self._is_so(power) and self._action is not Action.REBOOT and not context.checkpoint:
            return {"node": found.node, "managed": power.managed}
        self._require(power)
        try:
            await self._begin(context, found, managed=power.managed)
        except WrongPowerState as error:
            now = await found.cluster.power(found.node, found.vmid)
            if not self._is_so(now) or self._action is Action.REBOOT:
                raise VmState(f"The machine cannot {self._action}: it is {_state(now)}{self._hint(now)}") from error
        return {"node": found.node, "managed": power.managed}

    def _require(self, power: Power) -> None:
        """Raise VmState for what the cluster would not refuse in words of its own."""
        if self._action is Action.SUSPEND and power.managed:
            raise VmState("The HA manager keeps the machine running, and could not have it suspended to disk; pause it")
        if self._action in (Action.STOP, Action.SHUTDOWN) and _state(power) is State.SUSPENDED:
            raise VmState(f"It is suspended to disk; resume it to {self._action} it")

    def _hint(self, power: Power) -> str:
        if _state(power) is State.PAUSED and self._action in (Action.START, Action.SHUTDOWN, Action.REBOOT):
            return "; resume it first" + (", or stop it" if self._action is Action.SHUTDOWN else "")
        return ""

    async def _begin(self, context: StepContext, found: Found, *, managed: bool) -> None:
        if self._action is Action.STOP:
            await self._machines.stop(context, found)
            return
        verb = _VERBS.get(self._action, str(self._action))

        async def begin() -> str:
            return await found.cluster.act(found.node, found.vmid, verb, self._options)

        kind = _TASKS[self._action]
        recall = self._machines.recall(found, _MANAGED.get(self._action, kind) if managed else kind)
        await self._machines.task(context, found.cluster, verb, begin, recall)

    async def confirm(self, context: StepContext) -> Json:
        """Wait until it shows: after a reboot's task the machine is still off, and is started by its node."""
        vm = await self._machines.record(context)
        begun_at = time.time()
        managed = bool(context.results[str(self._action)].get("managed"))
        looks = look_again()
        while True:
            try:
                found = await self._machines.find(vm)
                power = await found.cluster.power(found.node, found.vmid)
            except (MachineMissing, NodeDown):  # the HA manager may be moving it at this very moment
                if not managed:
                    raise
            else:
                managed = power.managed
                if self._is_so(power):
                    return {"node": found.node}
            if time.time() - begun_at > (_MANAGED_CONFIRM_S if managed else _CONFIRM_S):
                raise ProxmoxRefused(f"The machine is not {AFTER[self._action]} after its {self._action}")
            await context.progress(0.5)
            await asyncio.sleep(next(looks))

    def _is_so(self, power: Power) -> bool:
        return _state(power) is AFTER[self._action]

    async def end(self, uow: UnitOfWork, operation: Operation) -> None:
        vm = await VmRepository(uow.session).get(UUID(operation.resource_id), for_update=True)
        if vm is None:
            return
        if operation.state is not OperationState.SUCCEEDED:
            touch(uow, vm)
            vm.reason = str((operation.error or {}).get("detail", operation.message))
            tell(uow, VmFailed, vm)
            return
        node = next(step.result["node"] for step in operation.steps if step.name == "confirm" and step.result)
        settled = self._action in (Action.PAUSE, Action.RESUME, Action.SUSPEND) or not vm.restart_needed
        if node != vm.node or not settled:
            vm.node, vm.restart_needed = node, vm.restart_needed and settled
            touch(uow, vm)
            tell(uow, VmUpdated, vm)
        vm.reason = None
        if State(vm.state).settled:
            enter(uow, vm, AFTER[self._action])


def _state(power: Power) -> State | None:
    return seen_as(power.status, power.lock)
