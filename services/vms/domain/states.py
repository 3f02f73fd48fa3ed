"""The states of a virtual machine, what may be asked of it in each, and what older clients call them."""

import re
from collections.abc import Mapping
from enum import StrEnum

from services.vms.errors import DiskShrinks, VmState


class State(StrEnum):
    CREATING = "creating"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    """Off, with its memory on disk: its next start goes on where it was."""
    DELETING = "deleting"
    ERROR = "error"

    @property
    def settled(self) -> bool:
        """Whether the cluster's own view decides between this state and the other settled ones."""
        return self in (State.RUNNING, State.STOPPED, State.PAUSED, State.SUSPENDED)


class Action(StrEnum):
    START = "start"
    SHUTDOWN = "shutdown"
    STOP = "stop"
    REBOOT = "reboot"
    PAUSE = "pause"
    RESUME = "resume"
    SUSPEND = "suspend"


AFTER: Mapping[Action, State] = {
    Action.START: State.RUNNING,
    Action.SHUTDOWN: State.STOPPED,
    Action.STOP: State.STOPPED,
    Action.REBOOT: State.RUNNING,
    Action.PAUSE: State.PAUSED,
    Action.RESUME: State.RUNNING,
    Action.SUSPEND: State.SUSPENDED,
}

SUSPENDED_LOCK = "suspended"
_STATUS: Mapping[State, str] = {
    State.CREATING: "creating",
    State.RUNNING: "enabled",
    State.STOPPED: "disabled",
    State.PAUSED: "paused",
    State.SUSPENDED: "paused",
    State.DELETING: "disabled",
    State.ERROR: "error",
}
_SEEN: Mapping[str, State] = {
    "running": State.RUNNING,
    "stopped": State.STOPPED,
    "paused": State.PAUSED,
    "suspended": State.PAUSED,
    "prelaunch": State.PAUSED,
}


def older_status(state: State) -> str:
    """The state in the words of the older VM and stack API."""
    return _STATUS[state]


def seen_as(status: str, lock: str | None = None) -> State | None:
    """The state that a status and a lock of the cluster's mean; None if they tell nothing.

    A guest that sleeps by itself (ACPI S3) has the status `suspended`; one on disk is stopped with that lock.
    """
    if status == "stopped" and lock == SUSPENDED_LOCK:
        return State.SUSPENDED
    return _SEEN.get(status)


def require_changeable(state: State, what: str) -> None:
    """Raise VmState unless a machine can be worked on."""
    if state is State.SUSPENDED:
        raise VmState(f"It is suspended to disk; {what} needs it resumed first")
    if not state.settled:
        raise VmState(f"It is {state}; {what} needs a machine that runs, is paused or is stopped")


def require_actionable(state: State, action: Action) -> None:
    """Raise VmState unless the power action can be asked for; whether it fits, the machine itself decides."""
    if state is State.SUSPENDED and action not in (Action.START, Action.RESUME, Action.SUSPEND):
        raise VmState(f"It is suspended to disk; resume it to {action} it")
    if not state.settled:
        raise VmState(f"It is {state}; to {action} it needs to run, to be paused or to be stopped")


def require_deletable(state: State) -> None:
    if state is State.DELETING:
        raise VmState("It is being deleted already")


def require_growth(now_gib: int, wanted_gib: int) -> None:
    """Raise DiskShrinks if a disk would become smaller."""
    if wanted_gib < now_gib:
        raise DiskShrinks(f"The disk has {now_gib} GiB; it cannot shrink to {wanted_gib} GiB")


def hostname(name: str) -> str:
    """The name a machine bears in the cluster and in its guest: letters, digits and hyphens of the name given to it."""
    plain = re.sub(r"[^A-Za-z0-9-]+", "-", name)[:63].strip("-")
    return plain or "vm"
