"""How a service describes its slow work: steps with their undoing, and what to do at the end."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from libs.common.operations.context import StepContext
from libs.common.operations.model import Json, Operation, StepRecord, StepState
from libs.common.uow import UnitOfWork

StepFunction = Callable[[StepContext], Awaitable[Json | None]]
"""Does a step; must be idempotent, since a crash may repeat it. What it returns is its stored result (JSON)."""
UndoFunction = Callable[[StepContext], Awaitable[None]]
"""Undoes a step that was done, or begun (then only the checkpoint tells how far it came); must be idempotent."""
Needed = Callable[[Operation], bool]
"""Whether a step has anything to do for this operation, by its input and memo: it is asked more than once."""
OnEnd = Callable[[UnitOfWork, Operation], Awaitable[None]]
"""Changes the resource and adds events in the transaction that stores the operation's final state; must not commit."""


class RetryLater(Exception):
    """Raised by a step or an undo that has to wait: it is called again after `after_s`, which counts as an attempt."""

    def __init__(self, after_s: float, reason: str) -> None:
        super().__init__(reason)
        self.after_s = after_s
        self.reason = reason


class RetryFrom(Exception):
    """Raised by a step to go another way: undo back to and including step `step`, then run on again from there.

    With `undo=False` the steps are run again as they are. What the next try must know belongs in `context.memo`.
    """

    def __init__(self, step: str, *, undo: bool = True, reason: str = "") -> None:
        super().__init__(reason or f"going back to {step}")
        self.step = step
        self.undo = undo
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a saga.

    `timeout_s` bounds each attempt of `run` and of `undo`; `max_attempts` bounds their attempts (an interruption by a
    restart is none). `weight` is its share of the progress. A step that cannot be broken off safely, such as work in
    a thread, is not `interruptible`: a cancellation waits for its end or for it to look at `context.cancelled`.
    A step that is not `needed` is skipped without a write. One that `saves_first` changes nothing outside, or nothing
    that a repetition would not, before its first `save`: that write also stores the end of the step before it and its
    own beginning, and a crash until then repeats the step before it.
    """

    name: str
    run: StepFunction
    undo: UndoFunction | None = None
    timeout_s: float = 300.0
    max_attempts: int = 5
    weight: float = 1.0
    interruptible: bool = True
    needed: Needed | None = None
    saves_first: bool = False


@dataclass(frozen=True, slots=True)
class Saga:
    """The steps of one kind of operation. Undoing runs in reverse order, the failed step included.

    `at_once` bounds how many of the kind one runner works on; the others stay pending and keep no other kind waiting.
    """

    kind: str
    steps: Sequence[Step]
    cancellable: bool = False
    on_end: OnEnd | None = None
    at_once: int | None = None

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def records(self, known: Sequence[StepRecord]) -> list[StepRecord]:
        """Match stored records with the steps of the code that runs now; raises ValueError if a begun one is gone."""
        stored = {record.name: record for record in known}
        records = [stored.get(step.name, StepRecord(step.name)) for step in self.steps]
        names = {step.name for step in self.steps}
        untouched = (StepState.PENDING, StepState.SKIPPED)
        begun = [record.name for record in known if record.name not in names and record.state not in untouched]
        if begun:
            raise ValueError(f"{self.kind} has no step {', '.join(begun)} any more, but this operation has begun it")
        return records

    def skip(self, operation: Operation) -> None:
        """Mark the waiting steps that have nothing to do."""
        for record in operation.steps:
            if record.state is StepState.PENDING:
                needed = self.step(record.name).needed
                if needed is not None and not needed(operation):
                    record.state = StepState.SKIPPED

    def progress(self, operation: Operation, fraction: float = 0.0) -> float:
        """The whole operation's progress (0..1) with `fraction` of its current step done."""
        total = sum(step.weight for step in self.steps)
        done = sum(self.step(record.name).weight for record in operation.steps if record.behind)
        current = self.step(operation.step).weight if operation.step is not None else 0.0
        return min(1.0, (done + current * min(1.0, max(0.0, fraction))) / total) if total else 0.0
