"""What a stack's record means to others: who sees it, where it is reached, and how events tell of it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from libs.common.auth import Principal
from libs.common.etag import check_if_match
from libs.common.events import Payload
from libs.common.ids import uuid7
from libs.common.operations import Operation, enqueue
from libs.common.quotas import ResourceRef, Usage
from libs.common.uow import UnitOfWork
from services.containers.domain.routing import host_name
from services.containers.domain.stacks import Action, StackService, State, begin
from services.containers.domain.templates import FILE_MANAGER
from services.containers.errors import StackNotFound
from services.containers.events import StackCreated, StackDeleted, StackFailed, StackStateChanged
from services.containers.models import Stack, StackRevision
from services.containers.repository import StackRepository
from services.containers.settings import ContainersSettings

RESOURCE = "stack"
SaveZip = Callable[[Path], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class NewStack:
    """A stack as it was just recorded, and the operation that works on it."""

    stack: Stack
    operation: Operation


def kind_of(action: Action) -> str:
    """The kind of the operation that does an action."""
    return f"stack.{action}"


def new_archive_name() -> str:
    return f"{uuid7().hex}.zip"


async def visible(uow: UnitOfWork, principal: Principal, stack_id: UUID, *, for_update: bool = False) -> Stack:
    """The stack, if the caller may see it; raises StackNotFound."""
    stack = await StackRepository(uow.session).get(stack_id, for_update=for_update)
    if stack is None or not principal.may_see(stack.owner_id):
        raise StackNotFound
    return stack


async def locked(
    uow: UnitOfWork, principal: Principal, stack_id: UUID, action: Action, if_match: str | None
) -> tuple[Stack, State]:
    """The stack, locked, and the state in which the action goes on; raises StackState or PreconditionFailed."""
    stack = await visible(uow, principal, stack_id, for_update=True)
    check_if_match(if_match, stack.version)
    return stack, begin(action, State(stack.state))


async def work_on(uow: UnitOfWork, stack: Stack, kind: str, given: Mapping[str, Any]) -> NewStack:
    """Enqueue an operation on the stack in its unit of work, and commit both."""
    operation = await enqueue(
        uow,
        kind=kind,
        resource_type=RESOURCE,
        resource_id=str(stack.id),
        owner_id=stack.owner_id,
        input=given,
    )
    await uow.commit()
    return NewStack(stack, operation)


def services_of(stack: Stack) -> list[StackService]:
    return [StackService.from_json(service) for service in stack.services]


def mirror(stack: Stack, revision: StackRevision) -> None:
    """Show a revision as what the stack is."""
    stack.service_types = list(revision.service_types)
    stack.primary_app_type = revision.primary_app_type or ""
    stack.variables = dict(revision.variables)
    stack.limits = dict(revision.limits)
    stack.services = list(revision.services)
    stack.compose = revision.compose


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where stacks are reached: on the engine's host by port, and behind a proxy by name if there is a `domain`."""

    public_host: str
    domain: str = ""
    scheme: str = "https"

    @classmethod
    def of(cls, settings: ContainersSettings) -> Self:
        return cls(settings.public_host, settings.domain, settings.domain_scheme)


def urls_of(stack: Stack, addresses: Addresses) -> Sequence[str]:
    """The stack's addresses, its primary app's first; the file manager's is not among them."""
    services = [service for service in services_of(stack) if service.template != FILE_MANAGER]
    services.sort(key=lambda service: service.name != stack.primary_app_type)
    urls = [url for service in services if (url := service.url(addresses.public_host)) is not None]
    if addresses.domain and services and services[0].port is not None and services[0].scheme == "http":
        urls.insert(0, f"{addresses.scheme}://{host_name(stack.name, stack.number, addresses.domain)}")
    return urls


class Teller:
    """Changes a stack's record and tells of it in the same unit of work."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses

    def created(self, uow: UnitOfWork, stack: Stack, usage: Usage | None) -> None:
        self._tell(uow, stack, StackCreated(**self._facts(stack), usage=usage))

    def moved(
        self, uow: UnitOfWork, stack: Stack, state: State, *, reason: str | None = None, usage: Usage | None = None
    ) -> None:
        """Put the stack into another state; `usage` if what its owner uses changed with it."""
        self._change(uow, stack, state, reason)
        self._tell(uow, stack, StackStateChanged(**self._facts(stack), usage=usage))

    def failed(self, uow: UnitOfWork, stack: Stack, reason: str, usage: Usage) -> None:
        self._change(uow, stack, State.FAILED, reason)
        self._tell(uow, stack, StackFailed(**self._facts(stack), reason=reason, usage=usage))

    def deleted(self, uow: UnitOfWork, stack: Stack, usage: Usage | None) -> None:
        stack.version += 1
        self._tell(uow, stack, StackDeleted(**self._facts(stack), usage=usage))

    def _change(self, uow: UnitOfWork, stack: Stack, state: State, reason: str | None) -> None:
        stack.state, stack.reason = state.value, reason
        stack.version += 1
        stack.updated_at = uow.clock.now()

    def _facts(self, stack: Stack) -> dict[str, Any]:
        return {
            "resource": ResourceRef(type=RESOURCE, id=str(stack.id), name=stack.name),
            "name": stack.name,
            "number": stack.number,
            "state": stack.state,
            "health": stack.health,
            "service_types": stack.service_types,
            "urls": list(urls_of(stack, self._addresses)) if stack.services else [],
        }

    def _tell(self, uow: UnitOfWork, stack: Stack, payload: Payload) -> None:
        uow.add_event(payload, subject=str(stack.id), owner=stack.owner_id, sequence=stack.version)
