"""Keeps stacks' records true to the engine: one stream of its events, and a look at everything when it begins."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection

import structlog

from libs.common.uow import UnitOfWorkFactory
from services.containers.domain.stacks import Health, Observed, State, found_state
from services.containers.errors import EngineFailed, EngineUnavailable
from services.containers.ports import Engine
from services.containers.repository import StackRepository
from services.containers.service.records import Addresses, Teller, services_of
from services.containers.settings import ContainersSettings

_GATHER_S = 0.3
"""Containers of a stack change together: what comes within this time is looked at once."""
_LAG_S = 2.0
"""An engine tells that a container has ended before its list shows it (networks are let go of in between), so what has
changed is looked at a second time."""
_LOOK_AGAIN_S = 300.0
"""An event may be lost with its connection: everything is looked at again so often."""
_SETTLED = (State.RUNNING, State.STOPPED)

_log = structlog.get_logger()


class Reconciler:
    """Safe to run on several replicas, but one is enough."""

    def __init__(self, uow: UnitOfWorkFactory, engine: Engine, settings: ContainersSettings) -> None:
        self._uow = uow
        self._engine = engine
        self._teller = Teller(Addresses.of(settings))

    async def follow(self) -> None:
        """Follow the engine until it goes away; stacks stay as they were then, for nobody knows better."""
        changes = self._engine.changes()
        try:
            await self._follow(changes)
        except (EngineUnavailable, EngineFailed) as error:
            _log.warning("engine_not_followed", error=error.slug)
        finally:
            with contextlib.suppress(RuntimeError):
                await changes.aclose()  # type: ignore[attr-defined] # it is a generator

    async def _follow(self, changes: AsyncIterator[str]) -> None:
        loop = asyncio.get_running_loop()
        reading: asyncio.Task[str] = asyncio.ensure_future(anext(changes))
        try:
            await self.look_at_all()
            look_at = loop.time() + _LOOK_AGAIN_S
            second_looks: dict[str, float] = {}
            while True:
                changed: set[str] = set()
                next_at = min([look_at, *second_looks.values()])
                done, _ = await asyncio.wait({reading}, timeout=max(0.0, next_at - loop.time()))
                until = loop.time() + _GATHER_S
                while done:
                    changed.add(reading.result())
                    reading = asyncio.ensure_future(anext(changes))
                    done, _ = await asyncio.wait({reading}, timeout=max(0.0, until - loop.time()))
                due = {project for project, at in second_looks.items() if at <= loop.time()}
                second_looks = {project: at for project, at in second_looks.items() if project not in due}
                second_looks |= dict.fromkeys(changed, loop.time() + _LAG_S)
                await self.look_at(changed | due)
                if loop.time() >= look_at:
                    await self.look_at_all()
                    look_at = loop.time() + _LOOK_AGAIN_S
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, EngineUnavailable, EngineFailed, StopAsyncIteration):
                await reading

    async def look_at(self, projects: Collection[str]) -> None:
        """Compare these projects' stacks with their containers."""
        for project, version in (await self._settled(projects)).items():
            await self._compare(project, version, [*await self._engine.observe(project)])

    async def look_at_all(self) -> None:
        """Compare every settled stack, with one question to the engine."""
        settled = await self._settled(None)
        containers = await self._engine.observe()
        for project, version in settled.items():
            await self._compare(project, version, [one for one in containers if one.project == project])

    async def _settled(self, projects: Collection[str] | None) -> dict[str, int]:
        async with self._uow() as uow:
            return await StackRepository(uow.session).settled(projects)

    async def _compare(self, project: str, version: int, containers: list[Observed]) -> None:
        """`version` is the stack's from before the engine was asked: what has changed since knows better."""
        async with self._uow() as uow:
            stack = await StackRepository(uow.session).of_project(project)
            if stack is None or stack.version != version or State(stack.state) not in _SETTLED:
                return  # gone, or an operation is or was at work on it and tells
            found = found_state(State(stack.state), services_of(stack), containers)
            if found.health is Health.STARTING and found.state.value == stack.state:
                return  # it was well when it was deployed; the engine only has not looked yet
            if (found.state.value, found.health.value) == (stack.state, stack.health):
                return
            _log.info("stack_found_changed", stack_id=str(stack.id), state=found.state, health=found.health)
            stack.health = found.health.value
            reason = found.reason if found.reason is not None or found.health is Health.HEALTHY else stack.reason
            self._teller.moved(uow, stack, found.state, reason=reason)
            await uow.commit()
