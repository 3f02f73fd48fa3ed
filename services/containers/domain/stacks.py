"""The stack's states, its names, its limits and the ports it opens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self
from uuid import UUID

from services.containers.errors import InvalidStack, StackState


class State(StrEnum):
    CREATING = "creating"
    DEPLOYING = "deploying"
    """Another revision is on its way; until it is healthy the one before can come back."""
    RUNNING = "running"
    STARTING = "starting"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    DELETING = "deleting"
    UNKNOWN = "unknown"
    """Only ever shown: the engine does not answer."""
    FAILED = "failed"
    """Its deployment failed and was undone: only the record is left, to be read and deleted."""


class Action(StrEnum):
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    REDEPLOY = "redeploy"
    ROLLBACK = "rollback"
    DELETE = "delete"


_SETTLED = frozenset({State.RUNNING, State.STOPPED})
_RULES: Mapping[Action, tuple[frozenset[State], State]] = {
    Action.START: (_SETTLED, State.STARTING),
    Action.STOP: (_SETTLED, State.STOPPING),
    Action.RESTART: (_SETTLED, State.RESTARTING),
    Action.REDEPLOY: (_SETTLED, State.DEPLOYING),
    Action.ROLLBACK: (_SETTLED, State.DEPLOYING),
    Action.DELETE: (_SETTLED | {State.FAILED}, State.DELETING),
}
AFTER: Mapping[Action, State] = {
    Action.START: State.RUNNING,
    Action.STOP: State.STOPPED,
    Action.RESTART: State.RUNNING,
}
"""What a stack is when the action has succeeded."""


def begin(action: Action, state: State) -> State:
    """The state of a stack while the action is under way; raises StackState if it cannot begin now.

    Starting what runs and stopping what is stopped is allowed: it repairs a stack that was changed by hand.
    """
    allowed, during = _RULES[action]
    if state not in allowed:
        hint = "wait for its operation to end" if state is not State.FAILED else "delete it and create it again"
        raise StackState(f"The stack is {state}, so that {action} is not possible: {hint}")
    return during


def project_name(stack_id: UUID) -> str:
    """The stack's compose project: the random half of its id, so that no other stack has it."""
    return f"telar-{stack_id.hex[-12:]}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What each service of a stack may use at most."""

    cpus: float
    memory_mib: int
    pids: int

    def require_within(self, most: "Limits") -> None:
        """Raise InvalidStack if a limit is above the operator's."""
        for name, value in asdict(self).items():
            highest = getattr(most, name)
            if value > highest:
                raise InvalidStack(f"/body/limits/{name}", f"{name} may be at most {highest:g}")


OWN = "compose"
"""Stands for a template at services of a stack's own compose file."""


def quota_of(limits: Sequence[Limits]) -> dict[str, int]:
    """What a stack takes of its owner's quota, given each of its services' limits; parts of a core count as one."""
    cores = sum(one.cpus for one in limits)
    return {
        "stacks": 1,
        "cores": math.ceil(round(cores, 6)),
        "memory_mib": sum(one.memory_mib for one in limits),
    }


@dataclass(frozen=True, slots=True)
class StackService:
    """One service of a stack, with one port that it opens, as recorded: `name` is its name in the compose file.

    `port` is the one in its container, `scheme` that of its URL. A service of an own compose file (whose `template` is
    OWN) may open none, or several: then there is one of these for each.
    """

    name: str
    template: str
    port: int | None = None
    host_port: int | None = None
    scheme: str = "http"

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(**document)

    def url(self, public_host: str) -> str | None:
        return f"{self.scheme}://{public_host}:{self.host_port}" if self.host_port is not None else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Health(StrEnum):
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    STARTING = "starting"
    STOPPED = "stopped"
    UNKNOWN = "unknown"
    """The engine does not answer, or has no container of the stack yet."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One container as the engine shows it: `state` is the engine's word (created, running, restarting, exited, …)."""

    project: str
    service: str
    container_id: str
    image: str
    state: str
    health: Health
    exit_code: int | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in ("exited", "dead")


@dataclass(frozen=True, slots=True)
class ServiceUsage:
    """What a service's container uses: 100 `cpu_percent` is one core; totals count from the container's start."""

    service: str
    cpu_percent: float
    memory_bytes: int
    memory_limit_bytes: int
    pids: int
    received_bytes: int
    sent_bytes: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """What the engine says of a stack that nothing is at work on."""

    state: State
    health: Health
    reason: str | None = None


def found_state(state: State, services: Sequence[StackService], containers: Sequence[Observed]) -> Found:
    """What a settled stack is, by its containers: the engine is the truth, except that nothing there proves nothing.

    An engine may be another one, or have lost what it had: containers that are gone never make a stack one.
    """
    names = {service.name for service in services}
    found = [container for container in containers if container.service in names]
    if not found:
        return Found(state, Health.UNKNOWN, "Its containers are gone from the engine; start brings them back")
    if all(container.has_ended or container.state == "created" for container in found):
        told = "Its containers were stopped outside Telar" if state is State.RUNNING else None
        return Found(State.STOPPED, Health.STOPPED, told)
    own = {service.name for service in services if service.template == OWN}
    relevant = [one for one in found if not (one.service in own and one.state == "exited" and one.exit_code == 0)]
    health = overall_health(relevant)
    missing = names - {container.service for container in found}
    if missing or health is Health.STOPPED:
        health = Health.UNHEALTHY
    return Found(State.RUNNING, health, f"{min(missing)} is gone from the engine" if missing else None)


def overall_health(containers: Sequence[Observed]) -> Health:
    """The worst health of a stack's containers."""
    found = {container.health for container in containers}
    for health in (Health.UNHEALTHY, Health.UNKNOWN, Health.STARTING, Health.STOPPED):
        if health in found:
            return health
    return Health.HEALTHY if found else Health.UNKNOWN
