"""New revisions of stacks: with other code, variables, limits or an older revision's, and what there were before."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

from libs.common.auth import Principal
from libs.common.errors import TelarError
from libs.common.etag import check_if_match
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.containers.domain.revisions import Cause, RevisionState, Source, SourceKind
from services.containers.domain.stacks import Action, Limits, StackService, State, begin
from services.containers.errors import InvalidStack, RevisionNotFound, RevisionUnusable, StackState
from services.containers.models import Stack, StackRevision
from services.containers.ports import CodeStore, Engine
from services.containers.repository import RevisionRepository
from services.containers.schemas import StackRedeploy
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

_USABLE = frozenset({RevisionState.ACTIVE, RevisionState.SUPERSEDED})
Fields = dict[str, Any]


class Changes:
    """For stacks that the caller may not see it raises StackNotFound."""

    def __init__(
        self,
        uow: UnitOfWorkFactory,
        engine: Engine,
        code: CodeStore,
        planner: Planner,
        sources: Sources,
        settings: ContainersSettings,
    ) -> None:
        self._uow = uow
        self._engine = engine
        self._code = code
        self._planner = planner
        self._sources = sources
        self._settings = settings
        self._teller = Teller(Addresses.of(settings))
        self._reservations = Reservations(settings)

    async def revisions(self, principal: Principal, stack_id: UUID) -> Sequence[StackRevision]:
        """All that are kept, newest first."""
        async with self._uow() as uow:
            await visible(uow, principal, stack_id)
            return await RevisionRepository(uow.session).of(stack_id)

    async def redeploy(
        self,
        principal: Principal,
        stack_id: UUID,
        asked: StackRedeploy,
        save_zip: SaveZip | None,
        *,
        if_match: str | None = None,
    ) -> NewStack:
        """Record a revision that differs from the one that runs by what is asked, and enqueue its deployment.

        Raises StackState, PreconditionFailed, InvalidStack, ComposeRefused, GitRefused, QuotaExceeded or NoPortLeft.
        """
        stack, current = await self._current(principal, stack_id, Action.REDEPLOY, if_match)
        source, is_new = await self._source(asked, current, with_zip=save_zip is not None)
        blueprint = await self._blueprint(asked, current)
        archive = new_archive_name() if is_new else current.archive
        if blueprint.mounts_code and archive is None:
            raise InvalidStack("/body/compose", "The file mounts the code (.), but the stack has none: send a ZIP")
        if save_zip is not None and archive is not None:
            await save_zip(self._code.new_archive(stack_id, archive))
        sealed = self._sources.sealed_again(current.git_credentials, asked, source.url)

        def fields(number: int) -> Fields:
            return {
                "cause": Cause.REDEPLOY.value,
                "source": source.to_json(),
                "git_credentials": sealed,
                "source_digest": None if is_new else current.source_digest,
                "archive": archive,
                "copy_number": number if is_new else current.copy_number,
                **blueprint.fields(),
            }

        async def place(uow: UnitOfWork, changed: Stack) -> Sequence[StackService]:
            await self._reservations.hold(uow, changed, blueprint.amounts)
            return await self._reservations.ports(uow, changed, blueprint.services)

        try:
            return await self._record(principal, stack, Action.REDEPLOY, fields, place, if_match)
        except TelarError:
            if save_zip is not None and archive is not None:
                await self._code.remove_archive(stack_id, archive)
            raise

    async def rollback(
        self, principal: Principal, stack_id: UUID, number: int | None, *, if_match: str | None = None
    ) -> NewStack:
        """Enqueue a revision that is what an earlier one was; without a number the one deployed before.

        Raises StackState, PreconditionFailed, RevisionNotFound, RevisionUnusable, QuotaExceeded or NoPortLeft.
        """
        stack, _ = await self._current(principal, stack_id, Action.ROLLBACK, if_match)
        before = await self._earlier(stack, number)

        def fields(new: int) -> Fields:
            return {
                "cause": Cause.ROLLBACK.value,
                "of_revision": before.number,
                "source": before.source,
                "git_credentials": before.git_credentials,
                "source_digest": before.source_digest,
                "archive": before.archive,
                "copy_number": new if before.archive is not None else before.copy_number,
                "service_types": before.service_types,
                "primary_app_type": before.primary_app_type,
                "variables": before.variables,
                "limits": before.limits,
                "reserved": before.reserved,
                "file_manager": before.file_manager,
                "own_compose": before.own_compose,
            }

        async def place(uow: UnitOfWork, changed: Stack) -> Sequence[StackService]:
            await self._reservations.hold(uow, changed, before.reserved)
            wanted = [StackService.from_json({**service, "host_port": None}) for service in before.services]
            return await self._reservations.ports(uow, changed, wanted)

        return await self._record(principal, stack, Action.ROLLBACK, fields, place, if_match)

    async def _current(
        self, principal: Principal, stack_id: UUID, action: Action, if_match: str | None
    ) -> tuple[Stack, StackRevision]:
        """The stack and the revision that runs, if something else can run in its place now."""
        async with self._uow() as uow:
            stack = await visible(uow, principal, stack_id)
            check_if_match(if_match, stack.version)
            begin(action, State(stack.state))
            current = await RevisionRepository(uow.session).get(stack_id, stack.revision)
        if current is None:
            raise StackState("The stack was never deployed; delete it and create it again")
        await self._engine.ping()
        return stack, current

    async def _earlier(self, stack: Stack, number: int | None) -> StackRevision:
        async with self._uow() as uow:
            kept = await RevisionRepository(uow.session).of(stack.id)
        usable = [one for one in kept if RevisionState(one.state) in _USABLE and one.compose is not None]
        if number is None:
            found = next((one for one in usable if one.number < stack.revision), None)
            if found is None:
                raise RevisionNotFound("No revision was deployed before this one, or it is not kept any more")
            return found
        found = next((one for one in kept if one.number == number), None)
        if found is None:
            raise RevisionNotFound(f"There is no revision {number}, or it is not kept any more")
        if found not in usable:
            raise RevisionUnusable(f"Revision {number} is {found.state}: it was never deployed")
        return found

    async def _source(self, asked: StackRedeploy, current: StackRevision, *, with_zip: bool) -> tuple[Source, bool]:
        """Where the code comes from, and whether that is anew: a repository is always looked at again."""
        before = Source.from_json(current.source)
        wanted = asked
        if asked.git_repo_url is None and before.kind is SourceKind.GIT and not with_zip:
            ref = asked.git_ref or before.ref
            wanted = asked.model_copy(update={"git_repo_url": before.url, "git_ref": ref})
        source = await self._sources.wanted(wanted, with_zip=with_zip)
        if source.kind is SourceKind.STARTER:
            return before, False
        return source, True

    async def _blueprint(self, asked: StackRedeploy, current: StackRevision) -> Blueprint:
        limits = limits_wanted(asked.limits, self._settings, Limits(**current.limits))
        variables = {**current.variables, **asked.variables}
        if current.own_compose is not None:
            text = asked.compose or current.own_compose
            return await self._planner.from_compose(text, variables, limits, file_manager=current.file_manager)
        if asked.compose is not None:
            raise InvalidStack("/body/compose", "This stack is made from templates, not from a compose file")
        return self._planner.from_templates(
            current.service_types,
            current.primary_app_type,
            variables,
            limits,
            file_manager=current.file_manager,
            as_admin=True,  # whoever made the stack was allowed to
        )

    async def _record(
        self,
        principal: Principal,
        stack: Stack,
        action: Action,
        fields: Callable[[int], Fields],
        place: Callable[[UnitOfWork, Stack], Awaitable[Sequence[StackService]]],
        if_match: str | None,
    ) -> NewStack:
        async with self._uow() as uow:
            changed, during = await locked(uow, principal, stack.id, action, if_match)
            if changed.revision != stack.revision:
                raise StackState("Another revision was deployed meanwhile; look at it, then try again")
            services = await place(uow, changed)
            changed.latest_revision += 1
            number = changed.latest_revision
            revision = StackRevision(
                stack_id=changed.id,
                number=number,
                state=RevisionState.PENDING.value,
                services=[service.to_json() for service in services],
                images={},
                created_at=uow.clock.now(),
                **fields(number),
            )
            await RevisionRepository(uow.session).add(revision)
            given = {"revision": number, "before": changed.state}
            self._teller.moved(uow, changed, during)
            return await work_on(uow, changed, kind_of(action), given)
