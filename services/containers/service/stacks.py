"""What people do with stacks: create, find, start, stop, restart, delete."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

import structlog

from libs.common.auth import Principal
from libs.common.errors import TelarError
from libs.common.ids import uuid7
from libs.common.pagination import PageRequest
from libs.common.quotas import Owners
from libs.common.uow import UnitOfWorkFactory
from services.containers.domain.revisions import Cause, RevisionState, Source, SourceKind
from services.containers.domain.stacks import Action, State, project_name
from services.containers.domain.templates import Template
from services.containers.errors import ForeignUserid, InvalidStack, StackNotFound, UnknownUserid
from services.containers.models import Stack, StackRevision
from services.containers.ports import CodeStore, Engine
from services.containers.repository import RevisionRepository, StackRepository
from services.containers.schemas import CheckedStack, StackCreate
from services.containers.service.limits import limits_wanted
from services.containers.service.planning import Blueprint, Planner
from services.containers.service.records import (
    Addresses,
    NewStack,
    SaveZip,
    Teller,
    kind_of,
    locked,
    new_archive_name,
    visible,
    work_on,
)
from services.containers.service.reservations import Reservations
from services.containers.service.sources import Sources
from services.containers.settings import ContainersSettings

CREATE = "stack.create"

_log = structlog.get_logger()


class Stacks:
    """The stacks that a caller may see; for all others it raises StackNotFound."""

    def __init__(
        self,
        uow: UnitOfWorkFactory,
        engine: Engine,
        code: CodeStore,
        planner: Planner,
        sources: Sources,
        settings: ContainersSettings,
        owners: Owners,
    ) -> None:
        self._uow = uow
        self._owners = owners
        self._engine = engine
        self._code = code
        self._planner = planner
        self._sources = sources
        self._settings = settings
        self._teller = Teller(Addresses.of(settings))
        self._reservations = Reservations(settings)

    @property
    def templates(self) -> Sequence[Template]:
        return self._planner.templates

    async def blueprint(self, wanted: StackCreate, *, with_zip: bool, as_admin: bool = False) -> Blueprint:
        """What a stack would be made of; raises InvalidStack, ComposeRefused or AdministratorsOnly."""
        limits = limits_wanted(wanted.limits, self._settings)
        variables = _variables(wanted)
        has_source = with_zip or wanted.git_repo_url is not None
        if wanted.compose is not None:
            if wanted.service_types or wanted.primary_app_type:
                raise InvalidStack("/body/compose", "Send either service_types or a compose file of your own")
            manager = wanted.file_manager and has_source
            variables = variables if manager else {k: v for k, v in variables.items() if k != "admin_pass"}
            return await self._planner.from_compose(wanted.compose, variables, limits, file_manager=manager)
        blueprint = self._planner.from_templates(
            wanted.service_types,
            wanted.primary_app_type,
            variables,
            limits,
            file_manager=wanted.file_manager,
            as_admin=as_admin,
            detect=has_source and wanted.primary_app_type is None,
        )
        runs_no_code = blueprint.primary is not None and self._code_path(blueprint.primary) is None
        if has_source and runs_no_code:
            pointer = "/body/zip_file" if with_zip else "/body/git_repo_url"
            raise InvalidStack(pointer, f"{blueprint.primary} runs no code of its own: leave it out")
        return blueprint

    async def validate(self, wanted: StackCreate, *, as_admin: bool = False) -> CheckedStack:
        """The dry run of `create`: raises what it would for the wish itself, and shows the file that would run.

        Where the app is found out from the code, which is not looked at, there is no file to show.
        """
        await self._sources.wanted(wanted, with_zip=False)
        blueprint = await self.blueprint(wanted, with_zip=False, as_admin=as_admin)
        is_open = blueprint.primary is None
        return CheckedStack(
            service_types=list(blueprint.service_types),
            primary_app_type=blueprint.primary,
            services=list(dict.fromkeys(service.name for service in blueprint.services)),
            reserves=blueprint.amounts,
            compose=None if is_open else await self._planner.preview(blueprint),
        )

    async def create(
        self, owner_id: str, wanted: StackCreate, save_zip: SaveZip | None, *, as_admin: bool = False
    ) -> NewStack:
        """Reserve quota and ports, keep the ZIP, record the stack and enqueue its deployment.

        Raises InvalidStack, ComposeRefused, GitRefused, AdministratorsOnly, StackNameTaken, QuotaExceeded, NoPortLeft,
        HostPortTaken or EngineUnavailable; then nothing is kept.
        """
        source = await self._sources.wanted(wanted, with_zip=save_zip is not None)
        blueprint = await self.blueprint(wanted, with_zip=save_zip is not None, as_admin=as_admin)
        if blueprint.mounts_code and source.kind is SourceKind.STARTER:
            raise InvalidStack(
                "/body/compose", "The file mounts the code (.), but there is neither a ZIP nor a repository"
            )
        await self._engine.ping()
        stack_id = uuid7()
        archive = None
        if source.kind is not SourceKind.STARTER or wanted.compose is None:
            archive = new_archive_name()
        try:
            if save_zip is not None and archive is not None:
                await save_zip(self._code.new_archive(stack_id, archive))
            stack = Stack(
                id=stack_id,
                owner_id=owner_id,
                name=wanted.name,
                project=project_name(stack_id),
                state=State.CREATING.value,
                service_types=list(blueprint.service_types),
                primary_app_type=blueprint.primary or "",
                variables=blueprint.variables,
                limits=asdict(blueprint.limits),
                services=[],
                reserved={},
                latest_revision=1,
            )
            revision = revision_of(stack, blueprint, source, archive)
            revision.git_credentials = self._sources.sealed(wanted)
            return await self._record(stack, blueprint, revision)
        except BaseException:
            await self._forget_files(stack_id)
            raise

    async def list(self, principal: Principal, request: PageRequest, state: State | None) -> Sequence[Any]:
        """One page of the caller's stacks (all stacks for administrators), and one more if there is a next page."""
        owner_id = None if principal.is_admin or principal.is_service else principal.user_id
        async with self._uow.looking() as session:
            return await StackRepository(session).list(request, owner_id=owner_id, state=state)

    async def get(self, principal: Principal, stack_id: UUID) -> Stack:
        async with self._uow() as uow:
            return await visible(uow, principal, stack_id)

    async def by_number(self, principal: Principal, number: int) -> Stack:
        """The stack that older clients know by an integer."""
        async with self._uow() as uow:
            stack_id = await StackRepository(uow.session).id_of(number)
            if stack_id is None:
                raise StackNotFound
            return await visible(uow, principal, stack_id)

    async def owner_for(self, principal: Principal, userid: str) -> str:
        """The user for whom an older client acts; only administrators act for others.

        Raises ForeignUserid, or to an administrator UnknownUserid.
        """
        owner_id = await self._owners.named(userid, arriving=principal.is_admin)
        if owner_id is None and principal.is_admin:
            raise UnknownUserid(f"There is no user {userid!r}; make one with POST /users")
        if owner_id is None or not principal.may_see(owner_id):
            raise ForeignUserid("Leave userid as your own, or ask an administrator")
        return owner_id

    async def act(
        self,
        principal: Principal,
        stack_id: UUID,
        action: Action,
        *,
        if_match: str | None = None,
        keep_volumes: bool = False,
    ) -> NewStack:
        """Begin to start, stop, restart or delete a stack; raises StackState or PreconditionFailed."""
        await self.get(principal, stack_id)
        await self._engine.ping()
        async with self._uow() as uow:
            stack, during = await locked(uow, principal, stack_id, action, if_match)
            given = {"before": stack.state, "keep_volumes": keep_volumes}
            self._teller.moved(uow, stack, during, reason=stack.reason)
            return await work_on(uow, stack, kind_of(action), given)

    async def _record(self, stack: Stack, blueprint: Blueprint, revision: StackRevision) -> NewStack:
        async with self._uow() as uow:
            usage = await self._reservations.settle(uow, stack, blueprint.amounts)
            stack.created_at = stack.updated_at = uow.clock.now()
            await StackRepository(uow.session).add(stack)
            services = await self._reservations.ports(uow, stack, blueprint.services)
            stack.services = [service.to_json() for service in services]
            revision.services, revision.created_at = list(stack.services), stack.created_at
            await RevisionRepository(uow.session).add(revision)
            self._teller.created(uow, stack, usage)
            return await work_on(uow, stack, CREATE, {"revision": 1})

    def _code_path(self, template: str) -> str | None:
        return next((one.code for one in self._planner.templates if one.name == template), None)

    async def _forget_files(self, stack_id: UUID) -> None:
        try:
            await self._code.remove(stack_id)
        except (OSError, TelarError) as error:  # the sweep will find them
            _log.warning("files_left_to_the_sweep", stack_id=str(stack_id), error=type(error).__name__)


def revision_of(stack: Stack, blueprint: Blueprint, source: Source, archive: str | None) -> StackRevision:
    """The first revision of a stack that is about to be recorded."""
    return StackRevision(
        stack_id=stack.id,
        number=1,
        state=RevisionState.PENDING.value,
        cause=Cause.CREATE.value,
        services=[],
        source=source.to_json(),
        archive=archive,
        copy_number=1,
        images={},
        **blueprint.fields(),
    )


def _variables(wanted: StackCreate) -> dict[str, Any]:
    if wanted.admin_pass is None:
        return dict(wanted.variables)
    if not wanted.file_manager:
        raise InvalidStack("/body/admin_pass", "There is no file manager to have this password")
    return {**wanted.variables, "admin_pass": wanted.admin_pass.get_secret_value()}
