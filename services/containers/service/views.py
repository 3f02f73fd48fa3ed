"""Shows stacks: the record, and beside it what the engine says of their containers now."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from libs.common.etag import etag
from services.containers.domain.stacks import Health, Observed, StackService, State, overall_health
from services.containers.domain.templates import FILE_MANAGER
from services.containers.errors import EngineFailed, EngineUnavailable
from services.containers.models import Stack, StackRevision
from services.containers.ports import Engine
from services.containers.schemas import (
    FileManagerOut,
    ImageOut,
    LimitsOut,
    LogLineOut,
    RevisionOut,
    ServiceOut,
    ServiceStats,
    SourceOut,
    StackOut,
    StackStats,
)
from services.containers.service.records import Addresses, services_of, urls_of

_CHECK_S = 2.0
"""A check that takes longer is not waited for: somebody waits for the answer."""


class Views:
    """Stacks stay readable while the engine is away: their health is unknown then."""

    def __init__(self, engine: Engine, addresses: Addresses) -> None:
        self._engine = engine
        self._addresses = addresses

    async def one(self, stack: Stack) -> StackOut:
        containers = await self._observed(stack.project)
        if containers is None:
            return self._shown(stack, [], is_known=False)
        return self._shown(stack, await asyncio.gather(*(self._checked(container) for container in containers)))

    async def many(self, stacks: Sequence[Any]) -> list[StackOut]:
        """Rows of a list, all with one question to the engine."""
        by_project: dict[str, list[Observed]] = defaultdict(list)
        containers = await self._observed(None) if stacks else []
        for container in containers or []:
            by_project[container.project].append(container)
        is_known = containers is not None
        return [self._shown(stack, by_project[stack.project], is_known=is_known) for stack in stacks]

    async def require_logs(self, stack: Stack, service: str | None) -> None:
        """Raise EngineUnavailable or TooManyLogStreams unless `logs` could be read now."""
        await self._engine.require_logs(stack.project, service)

    def recorded(self, stack: Stack) -> StackOut:
        """The record alone: for answers to work that has only been accepted."""
        return self._shown(stack, [])

    def revision(self, revision: StackRevision) -> RevisionOut:
        source = SourceOut(**revision.source, digest=revision.source_digest)
        return RevisionOut(
            **revision.model_dump(include=set(RevisionOut.model_fields) - {"source", "images", "limits"}),
            source=source,
            images={name: ImageOut(**image) for name, image in revision.images.items()},
            limits=LimitsOut(**revision.limits),
        )

    async def stats(self, stack: Stack) -> StackStats:
        """What each running service uses; raises EngineUnavailable."""
        usage = await self._engine.usage(stack.project)
        return StackStats(services=[ServiceStats(**asdict(one)) for one in usage])

    async def logs(
        self, stack: Stack, *, tail: int, follow: bool, service: str | None = None
    ) -> AsyncIterator[LogLineOut]:
        async for line in self._engine.logs(stack.project, tail=tail, follow=follow, service=service):
            yield LogLineOut(**asdict(line))

    async def _observed(self, project: str | None) -> Sequence[Observed] | None:
        """None if the engine does not answer."""
        try:
            return await self._engine.observe(project)
        except (EngineUnavailable, EngineFailed):
            return None

    async def _checked(self, container: Observed) -> Observed:
        """Look for ourselves where the engine has not looked yet: its first check comes an interval after the start."""
        if container.health is not Health.STARTING or container.state != "running":
            return container
        try:
            async with asyncio.timeout(_CHECK_S):
                well = await self._engine.check_health(container.container_id)
        except (EngineUnavailable, EngineFailed, TimeoutError):
            return container
        return replace(container, health=Health.STARTING if well is False else Health.HEALTHY)

    def _shown(self, stack: Stack, containers: Sequence[Observed], *, is_known: bool = True) -> StackOut:
        state = State(stack.state)
        urls = list(urls_of(stack, self._addresses))
        by_service = {container.service: container for container in containers}
        recorded = services_of(stack)
        services = [self._service(service, by_service.get(service.name)) for service in recorded]
        # Builds have ended and are no part of how the stack does.
        running = [by_service[service.name] for service in recorded if service.name in by_service]
        return StackOut(
            id=stack.id,
            number=stack.number,
            name=stack.name,
            owner_id=stack.owner_id,
            state=state if is_known or state not in (State.RUNNING, State.STOPPED) else State.UNKNOWN,
            health=overall_health(running),
            reason=stack.reason,
            service_types=stack.service_types,
            primary_app_type=stack.primary_app_type,
            services=services,
            url=urls[0] if urls else None,
            urls=urls,
            file_manager=self._file_manager(services),
            limits=LimitsOut(**stack.limits),
            variables=stack.variables,
            revision=stack.revision,
            created_at=stack.created_at,
            updated_at=stack.updated_at,
            etag=etag(stack.version),
        )

    def _file_manager(self, services: Sequence[ServiceOut]) -> FileManagerOut | None:
        found = next((one for one in services if one.type == FILE_MANAGER), None)
        return FileManagerOut(url=found.url, state=found.state, health=found.health) if found else None

    def _service(self, service: StackService, container: Observed | None) -> ServiceOut:
        return ServiceOut(
            name=service.name,
            type=service.template,
            image=container.image if container else None,
            state=container.state if container else None,
            health=container.health if container else Health.UNKNOWN,
            exit_code=container.exit_code if container else None,
            container_port=service.port,
            host_port=service.host_port,
            url=service.url(self._addresses.public_host),
        )
