"""Waits until a stack is well, and tells its owner why it is not: by its own checks and its services' last words."""

import asyncio
from collections.abc import Awaitable, Sequence

import structlog

from libs.common.errors import TelarError
from services.containers.domain.compose import build_name
from services.containers.domain.stacks import OWN, Observed, StackService
from services.containers.errors import BuildFailed, EngineFailed, StackUnhealthy
from services.containers.ports import Engine
from services.containers.settings import ContainersSettings

_POLL_FIRST_S, _POLL_MOST_S = 0.05, 1.0
_CRASH_LOOP_S = 5.0
_LAST_LINES = 3
_BUILD_LINES = 15
_MAX_LINE = 200

_log = structlog.get_logger()


class HealthWatch:
    """Looks at a stack's containers; `services` are those that have to be there."""

    def __init__(self, engine: Engine, settings: ContainersSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def wait(self, project: str, services: Sequence[StackService]) -> None:
        """Wait until every service passes its own health check; raises StackUnhealthy when one has ended or time is up.

        The check is run by us, at once: the engine would let its first interval pass before it looks.
        """
        loop = asyncio.get_running_loop()
        started, pause_s = loop.time(), _POLL_FIRST_S
        while True:
            waiting = await self._not_healthy(project, services)
            if not waiting:
                return
            waited_s = loop.time() - started
            restarting = any(container.state == "restarting" for container in waiting)
            if waited_s > self._settings.healthy_timeout_s or (restarting and waited_s > _CRASH_LOOP_S):
                raise StackUnhealthy(await self._diagnosis(project, waiting))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _POLL_MOST_S)

    async def running(self, project: str, services: Sequence[StackService], compose: Awaitable[None]) -> None:
        """Await a run of compose; if it fails for want of a build, raise BuildFailed with the build's last words."""
        try:
            await compose
        except EngineFailed:
            builds = {build_name(service.name) for service in services}
            for container in await self._engine.observe(project):
                if container.service in builds and container.has_ended and container.exit_code != 0:
                    words = await self._last_words(project, _BUILD_LINES, container.service)
                    raise BuildFailed(" | ".join([_state_words(container), *words])) from None
            raise

    async def _not_healthy(self, project: str, services: Sequence[StackService]) -> list[Observed]:
        """The containers that are not well yet; raises StackUnhealthy if one has ended or is missing.

        A service of an own file may do its work and end.
        """
        names = {service.name for service in services}
        own = {service.name for service in services if service.template == OWN}
        found = [one for one in await self._engine.observe(project) if one.service in names]
        done = [one for one in found if one.service in own and one.state == "exited" and one.exit_code == 0]
        running = [one for one in found if one not in done]
        if len(found) < len(names) or any(container.has_ended for container in running):
            raise StackUnhealthy(await self._diagnosis(project, found))
        well = await asyncio.gather(*(self._is_healthy(one) for one in running))
        return [one for one, is_well in zip(running, well, strict=True) if not is_well]

    async def _is_healthy(self, container: Observed) -> bool:
        return container.state == "running" and await self._engine.check_health(container.container_id) is not False

    async def _diagnosis(self, project: str, containers: Sequence[Observed]) -> str:
        """Tell the owner which service is not well and what it said last: its log goes with its container."""
        told = ", ".join(_state_words(one) for one in containers) or "a container is missing"
        said = await self._last_words(project, _LAST_LINES)
        return f"{told}. It said: {' | '.join(said[-_LAST_LINES:])}" if said else f"{told}; it said nothing"

    async def _last_words(self, project: str, lines: int, service: str | None = None) -> list[str]:
        """What each container of the stack, or that of one service, said last."""
        said: list[str] = []
        try:
            async for line in self._engine.logs(project, tail=lines, follow=False):
                if service in (None, line.service):
                    said.append(f"{line.service}: {line.text[:_MAX_LINE]}")  # noqa: PERF401 - kept if the engine goes
        except TelarError as error:
            _log.warning("last_words_lost", project=project, error=error.slug)
        return said


def _state_words(container: Observed) -> str:
    code = f" (exit code {container.exit_code})" if container.exit_code is not None else ""
    return f"{container.service} is {container.state}{code}"
