"""The steps of stacks' slow work: deploy, redeploy, roll back, start, stop, restart, delete, each with its undoing."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from libs.common.operations import Operation, RetryFrom, Saga, State, Step, StepContext
from libs.common.uow import UnitOfWork
from services.containers.domain.stacks import Action
from services.containers.domain.stacks import State as StackState
from services.containers.errors import PortTaken, RevisionNotFound, StackNotFound
from services.containers.service import Deployment, Endings
from services.containers.service.records import kind_of
from services.containers.service.stacks import CREATE
from services.containers.settings import ContainersSettings

_MAX_PORT_CHANGES = 5
_ENGINE_ATTEMPTS = 8
"""With the runner's back-off these span some minutes: an engine that restarts is waited for."""
_DOWN_TIMEOUT_S = 120.0


def sagas(deployment: Deployment, endings: Endings, settings: ContainersSettings) -> Sequence[Saga]:
    """Every kind of operation on stacks."""
    work = _Work(deployment, endings, settings)
    powers = [work.power(action) for action in (Action.START, Action.STOP, Action.RESTART)]
    changes = [work.change(action) for action in (Action.REDEPLOY, Action.ROLLBACK)]
    return [work.create(), *changes, *powers, work.delete()]


@dataclass(frozen=True, slots=True)
class _Work:
    deployment: Deployment
    endings: Endings
    settings: ContainersSettings

    def create(self) -> Saga:
        async def undo_store(context: StepContext) -> None:
            await self.deployment.remove_code(_stack(context))

        async def undo_up(context: StepContext) -> None:
            await self.deployment.take_down(_stack(context))

        async def end(uow: UnitOfWork, operation: Operation) -> None:
            stack_id, number = UUID(operation.resource_id), operation.input["revision"]
            if operation.state is State.SUCCEEDED:
                await self.endings.deployed(uow, stack_id, number)
            elif operation.state is not State.NEEDS_OPERATOR:
                await self.endings.deployment_failed(uow, stack_id, number, _reason(operation))

        return Saga(CREATE, steps=self._steps(undo_store, undo_up), cancellable=True, on_end=end)

    def change(self, action: Action) -> Saga:
        """Another revision in the place of the one that runs, which comes back if the new one does not get well.

        If undoing it needed an operator, its stack may be deleted or its revision forgotten before it is resumed: then
        nothing is left to undo.
        """

        async def undo_store(context: StepContext) -> None:
            with suppress(StackNotFound, RevisionNotFound):
                await self.deployment.remove_copy(_stack(context), _number(context))

        async def undo_up(context: StepContext) -> None:
            with suppress(StackNotFound):
                await self.deployment.restore(_stack(context), StackState(context.input["before"]))

        async def end(uow: UnitOfWork, operation: Operation) -> None:
            stack_id, number = UUID(operation.resource_id), operation.input["revision"]
            if operation.state is State.SUCCEEDED:
                await self.endings.deployed(uow, stack_id, number)
            else:
                before = StackState(operation.input["before"])
                with suppress(StackNotFound, RevisionNotFound):
                    await self.endings.redeployment_failed(uow, stack_id, number, before, _reason(operation))

        return Saga(kind_of(action), steps=self._steps(undo_store, undo_up), cancellable=True, on_end=end)

    def power(self, action: Action) -> Saga:
        async def act(context: StepContext) -> None:
            await self.deployment.act(_stack(context), action)

        async def healthy(context: StepContext) -> None:
            await self.deployment.wait_well(_stack(context))

        async def end(uow: UnitOfWork, operation: Operation) -> None:
            stack_id = UUID(operation.resource_id)
            if operation.state is State.SUCCEEDED:
                await self.endings.acted(uow, stack_id, action)
            else:
                before = StackState(operation.input["before"])
                await self.endings.action_failed(uow, stack_id, before, _reason(operation))

        steps = [Step(action.value, act, timeout_s=self.settings.deploy_timeout_s, max_attempts=_ENGINE_ATTEMPTS)]
        if action is not Action.STOP:
            steps.append(Step("healthy", healthy, timeout_s=self._healthy_s, max_attempts=_ENGINE_ATTEMPTS))
        return Saga(kind_of(action), steps=steps, on_end=end)

    def delete(self) -> Saga:
        async def down(context: StepContext) -> None:
            keep_volumes = context.input.get("keep_volumes", False)
            await self.deployment.take_down(_stack(context), keep_volumes=keep_volumes)

        async def remove(context: StepContext) -> None:
            await self.deployment.remove_code(_stack(context))

        async def end(uow: UnitOfWork, operation: Operation) -> None:
            stack_id = UUID(operation.resource_id)
            if operation.state is State.SUCCEEDED:
                await self.endings.deleted(uow, stack_id)
            else:
                before = StackState(operation.input["before"])
                await self.endings.action_failed(uow, stack_id, before, _reason(operation))

        return Saga(
            kind_of(Action.DELETE),
            steps=[
                Step("down", down, timeout_s=_DOWN_TIMEOUT_S, max_attempts=_ENGINE_ATTEMPTS),
                Step("remove", remove),
            ],
            on_end=end,
        )

    def _steps(self, undo_store: "_Undo", undo_up: "_Undo") -> list[Step]:
        async def fetch(context: StepContext) -> dict[str, Any]:
            return {"commit": await self.deployment.fetch(_stack(context), _number(context))}

        async def store(context: StepContext) -> dict[str, Any]:
            return {"digest": await self.deployment.store(_stack(context), _number(context))}

        async def render(context: StepContext) -> None:
            await self.deployment.plan(_stack(context), _number(context))
            await self.deployment.render(_stack(context), _number(context))

        async def healthy(context: StepContext) -> None:
            await self.deployment.wait_healthy(_stack(context), _number(context))

        settings = self.settings
        return [
            Step("fetch", fetch, undo=undo_store, timeout_s=settings.git_timeout_s + 30, max_attempts=2, weight=0.5),
            Step("store", store, undo=undo_store, timeout_s=300, interruptible=False),
            Step("render", render, max_attempts=_ENGINE_ATTEMPTS, weight=0.5),
            Step(
                "up",
                self._up,
                undo=undo_up,
                timeout_s=settings.deploy_timeout_s,
                max_attempts=_ENGINE_ATTEMPTS,
                weight=3,
            ),
            Step("healthy", healthy, timeout_s=self._healthy_s, max_attempts=_ENGINE_ATTEMPTS),
        ]

    async def _up(self, context: StepContext) -> None:
        try:
            await self.deployment.up(_stack(context), _number(context))
        except PortTaken:
            changes = context.memo.get("port_changes", 0)
            if changes >= _MAX_PORT_CHANGES:
                raise
            avoided = context.memo.get("avoided_ports", [])
            avoided = await self.deployment.change_ports(_stack(context), _number(context), avoided)
            context.memo.update(port_changes=changes + 1, avoided_ports=avoided)
            raise RetryFrom("render", reason="A host port was in use; others were chosen") from None

    @property
    def _healthy_s(self) -> float:
        return self.settings.healthy_timeout_s + 60


_Undo = Callable[[StepContext], Awaitable[None]]


def _stack(context: StepContext) -> UUID:
    return UUID(context.operation.resource_id)


def _number(context: StepContext) -> int:
    return int(context.input["revision"])


def _reason(operation: Operation) -> str:
    return str((operation.error or {}).get("detail", "")) or operation.message
