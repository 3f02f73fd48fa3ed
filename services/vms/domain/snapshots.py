"""Snapshots of a machine: their names, the mark of the operation that took one, and what may be asked when; pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from services.vms.domain.states import State
from services.vms.errors import SnapshotLimit, SnapshotNotFound, SnapshotTaken, UnsafeId, VmState

NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{1,39}$"
"""Proxmox VE's configuration ids, of 2 to 40 characters."""
_RESERVED = frozenset({"current", "pending"})
_NEVER = datetime.min.replace(tzinfo=UTC)
_MARK = "telar-operation "


class SnapshotState(StrEnum):
    CREATING = "creating"
    READY = "ready"
    ROLLING_BACK = "rolling_back"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot. `parent` is the one before it; `taken_by` the operation that took it, if Telar did."""

    name: str
    description: str = ""
    taken_at: datetime | None = None
    parent: str | None = None
    includes_memory: bool = False
    taken_by: str | None = None
    state: SnapshotState = SnapshotState.READY


@dataclass(frozen=True, slots=True)
class SnapshotTree:
    """A machine's snapshots, parents before children; `current` is the one that the machine goes on from."""

    snapshots: Sequence[Snapshot] = ()
    current: str | None = None

    def find(self, name: str) -> Snapshot | None:
        return next((one for one in self.snapshots if one.name == name), None)

    def require(self, name: str) -> Snapshot:
        """Raises SnapshotNotFound."""
        found = self.find(name)
        if found is None:
            raise SnapshotNotFound(f"There is no snapshot {name}")
        return found

    def with_state(self, name: str, state: SnapshotState) -> "SnapshotTree":
        """Show what is being done to a snapshot; one that is being taken may not be there yet."""
        if self.find(name) is None:
            if state is not SnapshotState.CREATING:
                return self
            new = Snapshot(name, parent=self.current, state=state)
            return SnapshotTree((*self.snapshots, new), self.current)
        shown = [replace(one, state=state) if one.name == name else one for one in self.snapshots]
        return SnapshotTree(shown, self.current)


def safe_snapshot(name: object) -> str:
    """Give a snapshot's name back, or raise UnsafeId."""
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name) or name.lower() in _RESERVED:
        raise UnsafeId("A snapshot's name is a letter, then letters, digits, _ or -, 2 to 40 in all, and not current")
    return name


def in_order(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """Parents before their children, siblings by age; one whose parent is not known begins a tree."""
    known = sorted(snapshots, key=lambda one: (one.taken_at is None, one.taken_at or _NEVER, one.name))
    names = {one.name for one in known}
    placed: list[Snapshot] = []
    waiting = [one for one in reversed(known) if one.parent not in names]
    while waiting:
        one = waiting.pop()
        placed.append(one)
        waiting += [child for child in reversed(known) if child.parent == one.name]
    done = {one.name for one in placed}
    return placed + [one for one in known if one.name not in done]  # a ring of parents is shown, not lost


def marked(description: str, operation_id: str) -> str:
    """A description that says which operation took the snapshot, so that a crash does not take it twice."""
    return f"{description}\n{_MARK}{operation_id}".strip()


def unmarked(text: str) -> tuple[str, str | None]:
    """A description without its mark, and the operation of the mark."""
    lines = text.strip().splitlines()
    if lines and lines[-1].startswith(_MARK):
        return "\n".join(lines[:-1]).strip(), lines[-1].removeprefix(_MARK).strip()
    return text.strip(), None


def require_takeable(tree: SnapshotTree, name: str, *, limit: int) -> None:
    """Raise SnapshotTaken or SnapshotLimit unless one more of this name may be taken."""
    if tree.find(name) is not None:
        raise SnapshotTaken(f"There is a snapshot {name} already; choose another name or delete it")
    if len(tree.snapshots) >= limit:
        raise SnapshotLimit(f"A machine keeps at most {limit} snapshots; delete one first")


def require_memory(state: State) -> None:
    """Raise VmState unless a machine has memory to keep."""
    if state not in (State.RUNNING, State.PAUSED):
        raise VmState(f"It is {state}: only a machine that runs has memory to include; leave include_memory out")
