"""How operations on stacks end: each method runs in the unit of work that stores the operation's final state."""

from uuid import UUID

from libs.common.uow import UnitOfWork
from services.containers.domain.revisions import RevisionState
from services.containers.domain.stacks import AFTER, Action, Health, State
from services.containers.errors import RevisionNotFound, StackNotFound
from services.containers.models import Stack, StackRevision
from services.containers.repository import RevisionRepository, StackRepository
from services.containers.service.records import Addresses, Teller, mirror, services_of
from services.containers.service.reservations import Reservations
from services.containers.settings import ContainersSettings


class Endings:
    """Must not commit."""

    def __init__(self, settings: ContainersSettings) -> None:
        self._teller = Teller(Addresses.of(settings))
        self._reservations = Reservations(settings)

    async def deployed(self, uow: UnitOfWork, stack_id: UUID, number: int) -> None:
        """The revision runs: it is what the stack is now, and holds what it needs and no more."""
        stack, revision = await self._locked(uow, stack_id, number)
        if stack.revision not in (0, number):
            before = await RevisionRepository(uow.session).get(stack_id, stack.revision)
            if before is not None:
                before.state = RevisionState.SUPERSEDED.value
        revision.state, revision.reason = RevisionState.ACTIVE.value, None
        stack.revision = number
        mirror(stack, revision)
        stack.health = Health.HEALTHY.value
        usage = await self._reservations.settle(uow, stack, revision.reserved)
        await self._reservations.release_ports_but(uow, stack, services_of(stack))
        self._teller.moved(uow, stack, State.RUNNING, usage=usage)

    async def deployment_failed(self, uow: UnitOfWork, stack_id: UUID, number: int, reason: str) -> None:
        """Nothing of the stack is left. Keep only its record, for its owner to read; ports and quota are given back."""
        stack, revision = await self._locked(uow, stack_id, number)
        revision.state, revision.reason = RevisionState.FAILED.value, reason
        stack.services, stack.compose, revision.git_credentials = [], None, None
        usage = await self._reservations.settle(uow, stack, {})
        await self._reservations.release_ports_but(uow, stack, [])
        if usage is not None:
            self._teller.failed(uow, stack, reason, usage)

    async def redeployment_failed(
        self, uow: UnitOfWork, stack_id: UUID, number: int, before: State, reason: str
    ) -> None:
        """The revision before runs again, as if nothing had been; the reason is told beside the stack."""
        stack, revision = await self._locked(uow, stack_id, number)
        revision.state, revision.reason, revision.git_credentials = RevisionState.FAILED.value, reason, None
        current = await RevisionRepository(uow.session).get(stack_id, stack.revision)
        usage = await self._reservations.settle(uow, stack, current.reserved) if current is not None else None
        await self._reservations.release_ports_but(uow, stack, services_of(stack))
        told = f"Revision {number} was rolled back to {stack.revision}: {reason}"
        self._teller.moved(uow, stack, before, reason=told, usage=usage)

    async def acted(self, uow: UnitOfWork, stack_id: UUID, action: Action) -> None:
        stack = await self._locked_stack(uow, stack_id)
        stack.health = (Health.STOPPED if action is Action.STOP else Health.HEALTHY).value
        self._teller.moved(uow, stack, AFTER[action])

    async def action_failed(self, uow: UnitOfWork, stack_id: UUID, before: State, reason: str) -> None:
        """Put the stack back into the state it had before, with the reason beside it."""
        self._teller.moved(uow, await self._locked_stack(uow, stack_id), before, reason=reason)

    async def deleted(self, uow: UnitOfWork, stack_id: UUID) -> None:
        stack = await self._locked_stack(uow, stack_id)
        usage = await self._reservations.settle(uow, stack, {})
        await self._reservations.release_ports_but(uow, stack, [])
        self._teller.deleted(uow, stack, usage)
        await StackRepository(uow.session).remove(stack)

    async def _locked(self, uow: UnitOfWork, stack_id: UUID, number: int) -> tuple[Stack, StackRevision]:
        stack = await self._locked_stack(uow, stack_id)
        revision = await RevisionRepository(uow.session).get(stack_id, number, for_update=True)
        if revision is None:
            raise RevisionNotFound(f"The stack has no revision {number}")
        return stack, revision

    async def _locked_stack(self, uow: UnitOfWork, stack_id: UUID) -> Stack:
        stack = await StackRepository(uow.session).get(stack_id, for_update=True)
        if stack is None:
            raise StackNotFound
        return stack
