"""The work behind a stack's operations, one idempotent method for each step."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from uuid import UUID

import structlog
import yaml

from libs.common.errors import TelarError
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.containers.domain.archives import Caps
from services.containers.domain.revisions import Cause, ImageRecord, Source, SourceKind
from services.containers.domain.sources import DEFAULT_REF, READ_TO_DETECT, detect_app
from services.containers.domain.stacks import Action, Limits, StackService, State
from services.containers.domain.templates import starter_of
from services.containers.errors import InvalidStack, RevisionNotFound, RevisionUnusable, StackNotFound
from services.containers.models import Stack, StackRevision
from services.containers.ports import CodeStore, Compose, Engine, Repositories
from services.containers.repository import PortRepository, RevisionRepository, StackRepository
from services.containers.service.health import HealthWatch
from services.containers.service.planning import Planner
from services.containers.service.records import mirror, services_of
from services.containers.service.rendering import Renderer
from services.containers.service.reservations import Reservations
from services.containers.service.sources import Sources
from services.containers.settings import ContainersSettings

_log = structlog.get_logger()


class Deployment:
    """Brings revisions of stacks to the engine and away from it; every method may be repeated after a crash."""

    def __init__(
        self,
        *,
        uow: UnitOfWorkFactory,
        compose: Compose,
        engine: Engine,
        code: CodeStore,
        planner: Planner,
        renderer: Renderer,
        repositories: Repositories,
        sources: Sources,
        settings: ContainersSettings,
    ) -> None:
        self._uow = uow
        self._compose = compose
        self._engine = engine
        self._code = code
        self._planner = planner
        self._renderer = renderer
        self._repositories = repositories
        self._sources = sources
        self._settings = settings
        self._health = HealthWatch(engine, settings)
        self._reservations = Reservations(settings)

    # The steps of a deployment

    async def fetch(self, stack_id: UUID, number: int) -> str | None:
        """Archive what the revision's repository has at its ref; gives the commit, None without a repository."""
        _, revision = await self._load(stack_id, number)
        source = Source.from_json(revision.source)
        if source.kind is not SourceKind.GIT or revision.archive is None or source.url is None:
            return None
        path = await asyncio.to_thread(self._code.new_archive, stack_id, revision.archive)
        if source.commit is not None and await asyncio.to_thread(path.exists):
            return source.commit
        commit = await self._repositories.archive(
            source.url, source.ref or DEFAULT_REF, self._sources.access(revision.git_credentials), path
        )
        async with self._uow() as uow:
            stored = await self._locked_revision(uow, stack_id, number)
            stored.source = replace(source, commit=commit).to_json()
            await uow.commit()
        return commit

    async def store(self, stack_id: UUID, number: int) -> str | None:
        """Unpack the revision's archive into its working copy; gives the archive's digest."""
        _, revision = await self._load(stack_id, number)
        if revision.archive is None:
            return None
        source = Source.from_json(revision.source)
        path = self._code.archive(stack_id, revision.archive)
        if source.kind is SourceKind.STARTER and not await asyncio.to_thread(path.exists):
            templates = [one for one in self._planner.templates if one.name in revision.service_types]
            files = starter_of(templates, revision.primary_app_type or "")
            await self._code.archive_files(stack_id, revision.archive, files)
        caps = Caps(max_bytes=self._settings.max_code_bytes, max_files=self._settings.max_code_files)
        digest = await self._code.unpack(stack_id, revision.archive, revision.copy_number, caps)
        async with self._uow() as uow:
            stored = await self._locked_revision(uow, stack_id, number)
            stored.source_digest = digest
            await uow.commit()
        return digest

    async def plan(self, stack_id: UUID, number: int) -> None:
        """Find out which app the code is, if nobody said so, and reserve what that takes.

        Raises InvalidStack, QuotaExceeded or NoPortLeft.
        """
        _, revision = await self._load(stack_id, number)
        if revision.primary_app_type is not None:
            return
        names, contents = await self._code.look(stack_id, revision.copy_number, READ_TO_DETECT)
        found = detect_app(names, contents)
        if found is None:
            raise InvalidStack("/body/service_types", "The type of the app does not show in its code: name it")
        blueprint = self._planner.from_templates(
            [found, *(name for name in revision.service_types if name != found)],
            found,
            revision.variables,
            Limits(**revision.limits),
            file_manager=revision.file_manager,
        )
        async with self._uow() as uow:
            stack = await self._locked(uow, stack_id)
            stored = await self._locked_revision(uow, stack_id, number)
            if stored.primary_app_type is None:
                await self._reservations.hold(uow, stack, blueprint.amounts)
                services = await self._reservations.ports(uow, stack, blueprint.services)
                stored.service_types = list(blueprint.service_types)
                stored.primary_app_type = blueprint.primary
                stored.variables = blueprint.variables
                stored.services = [service.to_json() for service in services]
                stored.reserved = dict(blueprint.amounts)
                if stack.revision == 0:
                    mirror(stack, stored)
                    stack.version += 1
            await uow.commit()

    async def render(self, stack_id: UUID, number: int) -> None:
        """Write the compose file, if the policy gate lets it pass; raises ComposeRefused or RevisionUnusable."""
        stack, revision = await self._load(stack_id, number)
        if revision.cause == Cause.ROLLBACK and revision.of_revision is not None:
            _, before = await self._load(stack_id, revision.of_revision)
            model = self._renderer.render_again(stack, revision, before, await self._images_again(before))
        else:
            model = await self._renderer.render(stack, revision)
        text = yaml.safe_dump(model, sort_keys=False, allow_unicode=True)
        await self._code.write_compose(stack_id, text)
        async with self._uow() as uow:
            stored = await self._locked_revision(uow, stack_id, number)
            stored.compose = text
            await uow.commit()

    async def up(self, stack_id: UUID, number: int) -> None:
        """Build what is to be built and start everything; raises BuildFailed."""
        stack, revision = await self._load(stack_id, number)
        if revision.compose is not None:
            await self._code.write_compose(stack_id, revision.compose)
        services = [StackService.from_json(service) for service in revision.services]
        await self._health.running(
            stack.project, services, self._compose.up(stack.project, self._code.folder(stack_id))
        )

    async def wait_healthy(self, stack_id: UUID, number: int) -> None:
        """Wait until the revision is well, and note the images it runs; raises StackUnhealthy."""
        stack, revision = await self._load(stack_id, number)
        services = [StackService.from_json(service) for service in revision.services]
        # Together: what runs is known as soon as it has started.
        _, images = await asyncio.gather(
            self._health.wait(stack.project, services), self._engine.images_of(stack.project)
        )
        async with self._uow() as uow:
            stored = await self._locked_revision(uow, stack_id, number)
            if not stored.images:
                stored.images = {name: asdict(image) for name, image in images.items()}
            await uow.commit()

    async def change_ports(self, stack_id: UUID, number: int, avoid: Sequence[int]) -> list[int]:
        """Exchange the revision's host ports, one of which is in use elsewhere; gives all that are to be avoided."""
        async with self._uow() as uow:
            stack = await self._locked(uow, stack_id)
            revision = await self._locked_revision(uow, stack_id, number)
            services = [StackService.from_json(service) for service in revision.services]
            avoided = sorted({*avoid, *(one.host_port for one in services if one.host_port is not None)})
            ports = PortRepository(uow.session, self._settings.port_range_first, self._settings.port_range_last)
            opening = [one for one in services if one.host_port is not None]
            before = services_of(stack) if stack.revision else []  # it may have to come back
            await ports.release_but(stack_id, [one.host_port for one in before if one.host_port is not None])
            reserved = iter(await ports.reserve(stack_id, len(opening), avoid=avoided))
            changed = [replace(one, host_port=next(reserved)) if one in opening else one for one in services]
            revision.services = [one.to_json() for one in changed]
            if stack.revision == 0:
                mirror(stack, revision)
            stack.version += 1
            await uow.commit()
        _log.warning("stack_ports_changed", stack_id=str(stack_id), avoided=avoided)
        return avoided

    # Undoing

    async def take_down(self, stack_id: UUID, *, keep_volumes: bool = False) -> None:
        """Remove all that the stack has on the engine."""
        stack = await self._load_stack(stack_id)
        folder = self._code.folder(stack_id)
        if await asyncio.to_thread(folder.is_dir):
            await self._compose.down(stack.project, folder, keep_volumes=keep_volumes)
        await self._engine.remove_project(stack.project, keep_volumes=keep_volumes)

    async def restore(self, stack_id: UUID, before: State) -> None:
        """Bring back the revision that ran before; that it is not well again is logged, for nothing better is there."""
        stack = await self._load_stack(stack_id)
        _, revision = await self._load(stack_id, stack.revision)
        if revision.compose is None:
            return
        folder, services = self._code.folder(stack_id), services_of(stack)
        await self._code.write_compose(stack_id, revision.compose)
        await self._compose.up(stack.project, folder)
        if before is State.STOPPED:
            await self._compose.stop(stack.project, folder)
            return
        try:
            await self._health.wait(stack.project, services)
        except TelarError as error:
            _log.warning("restored_revision_unwell", stack_id=str(stack_id), error=error.slug)

    async def remove_copy(self, stack_id: UUID, number: int) -> None:
        """Remove the working copy that only this revision has; the stack's whole folder if it never ran."""
        stack, revision = await self._load(stack_id, number)
        if stack.revision == 0:
            await self._code.remove(stack_id)
        elif revision.copy_number == number:
            await self._code.remove_copy(stack_id, number)

    async def remove_code(self, stack_id: UUID) -> None:
        await self._code.remove(stack_id)

    # Power

    async def act(self, stack_id: UUID, action: Action) -> None:
        """Start, stop or restart the stack's containers."""
        stack = await self._load_stack(stack_id)
        call = {
            Action.START: self._compose.start,
            Action.STOP: self._compose.stop,
            Action.RESTART: self._compose.restart,
        }[action]
        await self._health.running(stack.project, services_of(stack), call(stack.project, self._code.folder(stack_id)))

    async def wait_well(self, stack_id: UUID) -> None:
        """Wait until the stack is well as it is; raises StackUnhealthy."""
        stack = await self._load_stack(stack_id)
        await self._health.wait(stack.project, services_of(stack))

    async def _images_again(self, before: StackRevision) -> Mapping[str, str]:
        """For each service the image it ran: by name while that means the same, else by id, else by digest."""
        images: dict[str, str] = {}
        for name, document in before.images.items():
            image = ImageRecord(**document)
            if await self._engine.image_id(image.name) == image.image_id:
                images[name] = image.name
            elif await self._engine.has_image(image.image_id):
                images[name] = image.image_id
            elif image.digest is not None:
                images[name] = image.digest
            else:
                raise RevisionUnusable(f"The engine has the image of {name} ({image.name}) no more")
        return images

    async def _load(self, stack_id: UUID, number: int) -> tuple[Stack, StackRevision]:
        async with self._uow() as uow:
            stack = await StackRepository(uow.session).get(stack_id)
            revision = await RevisionRepository(uow.session).get(stack_id, number)
        if stack is None:
            raise StackNotFound
        if revision is None:
            raise RevisionNotFound(f"The stack has no revision {number}")
        return stack, revision

    async def _load_stack(self, stack_id: UUID) -> Stack:
        async with self._uow() as uow:
            stack = await StackRepository(uow.session).get(stack_id)
        if stack is None:
            raise StackNotFound
        return stack

    async def _locked(self, uow: UnitOfWork, stack_id: UUID) -> Stack:
        stack = await StackRepository(uow.session).get(stack_id, for_update=True)
        if stack is None:
            raise StackNotFound
        return stack

    async def _locked_revision(self, uow: UnitOfWork, stack_id: UUID, number: int) -> StackRevision:
        revision = await RevisionRepository(uow.session).get(stack_id, number, for_update=True)
        if revision is None:
            raise RevisionNotFound(f"The stack has no revision {number}")
        return revision
