"""What an operation is: its states, the record of each step, and where it goes next; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from sqlalchemy import RowMapping

Json = dict[str, Any]


class State(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    NEEDS_OPERATOR = "needs_operator"
    """An undo keeps failing; only an admin's resume moves it on."""

    @property
    def is_final(self) -> bool:
        return self not in (State.PENDING, State.RUNNING)


class Direction(StrEnum):
    FORWARD = "forward"
    BACKWARD = "backward"


class StepState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    SKIPPED = "skipped"
    """This operation has nothing for it to do."""


_TO_UNDO = frozenset({StepState.RUNNING, StepState.DONE, StepState.FAILED, StepState.UNDOING})
_TO_RUN = frozenset({StepState.PENDING, StepState.RUNNING})
_BEHIND = frozenset({StepState.DONE, StepState.SKIPPED})


@dataclass(slots=True)
class StepRecord:
    """What is durably known of one step. `attempts` counts failures; times are RFC 3339."""

    name: str
    state: StepState = StepState.PENDING
    result: Json | None = None
    attempts: int = 0
    started_at: str | None = None
    finished_at: str | None = None
    checkpoint: Json = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(**{**document, "state": StepState(document["state"])})

    def to_json(self) -> Json:
        """What is stored; `dataclasses.asdict` would copy whole checkpoints at each write."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def behind(self) -> bool:
        """Whether the operation has this step behind it."""
        return self.state in _BEHIND


@dataclass(slots=True)
class Operation:
    """One piece of slow work on one resource. `memo` is data its steps share, `back_to` where an undo turns round."""

    id: str
    kind: str
    resource_type: str
    resource_id: str
    owner_id: str
    state: State
    direction: Direction
    step: str | None
    progress: float
    message: str
    error: Json | None
    attempts: int
    input: Json
    memo: Json
    steps: list[StepRecord]
    back_to: str | None
    lease_holder: str | None
    cancel_requested: bool
    traceparent: str | None
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None

    @classmethod
    def from_row(cls, row: RowMapping) -> Self:
        values = {name: row[name] for name in cls.__dataclass_fields__}
        values["state"] = State(row["state"])
        values["direction"] = Direction(row["direction"])
        values["steps"] = [StepRecord.from_json(step) for step in row["steps"]]
        return cls(**values)

    def index(self, step: str) -> int:
        """The place of a step; raises ValueError if there is none of that name."""
        return [record.name for record in self.steps].index(step)

    def next_to_run(self) -> StepRecord | None:
        return next((record for record in self.steps if record.state in _TO_RUN), None)

    def left_to_undo(self) -> Sequence[StepRecord]:
        """The steps that compensation still has to undo, in the order it undoes them."""
        first = self.index(self.back_to) if self.back_to is not None else 0
        return [record for record in reversed(self.steps[first:]) if record.state in _TO_UNDO]

    def forget_from(self, step: str) -> None:
        """Make a step and all after it as if they had never run; the memo stays."""
        first = self.index(step)
        self.steps[first:] = [StepRecord(record.name) for record in self.steps[first:]]
