"""What a step sees and may store while it runs."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from libs.common.operations.model import Json, Operation, StepRecord

PROGRESS_INTERVAL_S = 1.0
MAX_MESSAGE_LENGTH = 500


class Control(Protocol):
    """The execution that a step is part of."""

    cancel_requested: bool
    stopping: bool
    kept: dict[str, Any]

    async def write(self) -> None:
        """Store the operation as it is in memory; raises LeaseLost if another runner may hold it."""


class StepContext:
    """A step's window on its operation.

    The intent pattern: `save` what is about to be done, call the outside system, `save` the id it gave. After a crash
    the step is run again and sees its last `checkpoint`.
    """

    def __init__(
        self, operation: Operation, record: StepRecord, control: Control, progress: Callable[[float], float]
    ) -> None:
        self.operation = operation
        self._record = record
        self._control = control
        self._progress = progress
        self._write_progress_at = 0.0
        self._told = (operation.progress, operation.message)

    @property
    def operation_id(self) -> str:
        return self.operation.id

    @property
    def input(self) -> Mapping[str, Any]:
        return self.operation.input

    @property
    def memo(self) -> Json:
        """Data shared by all steps, kept when steps are run again; stored with the next write of any kind."""
        return self.operation.memo

    @property
    def kept(self) -> dict[str, Any]:
        """What the steps of this run keep in memory for those after them; empty again after a restart or a retry."""
        return self._control.kept

    @property
    def results(self) -> Mapping[str, Json]:
        """Results of the steps that have run, by step name."""
        return {record.name: record.result or {} for record in self.operation.steps if record.result is not None}

    @property
    def result(self) -> Json:
        """The result of this very step, for its undo; empty if it did not come to its end."""
        return self._record.result or {}

    @property
    def checkpoint(self) -> Mapping[str, Any]:
        return self._record.checkpoint

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1; a restart of the process repeats the same attempt."""
        return self._record.attempts + 1

    @property
    def cancelled(self) -> bool:
        """Whether the operation's owner asked to cancel it: a step that is not interruptible looks here."""
        return self._control.cancel_requested

    async def save(self, **checkpoint: Any) -> None:
        """Add to the checkpoint and the memo's durable copy before going on; raises LeaseLost."""
        self._record.checkpoint = storable({**self._record.checkpoint, **checkpoint})
        self.operation.memo = storable(self.operation.memo)
        await self._control.write()

    def reach(self, fraction: float) -> None:
        """Note how far this step is (0..1), for the next `save` to store."""
        self.operation.progress = self._progress(fraction)
        self._told = (self.operation.progress, self.operation.message)

    async def progress(self, fraction: float, message: str = "") -> None:
        """Tell how far this step is (0..1); stored if it is news, at most once a second.

        Breaks off while the runner closes.
        """
        if self._control.stopping:
            raise asyncio.CancelledError
        self.operation.progress = self._progress(fraction)
        if message:
            self.operation.message = readable(message)
        news = (self.operation.progress, self.operation.message)
        now = asyncio.get_running_loop().time()
        if news != self._told and now >= self._write_progress_at:
            self._told, self._write_progress_at = news, now + PROGRESS_INTERVAL_S
            await self._control.write()


def storable(value: Json) -> Json:
    """Bring a value into the form that jsonb gives back; raises TypeError or ValueError if it is not JSON.

    PostgreSQL refuses NUL characters and lone surrogates, which outside systems' texts may hold.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace").decode()
    plain: Json = json.loads(text.replace("\\u0000", "\\ufffd"))
    return plain


def readable(message: str) -> str:
    """Make a text fit for the operation's message column."""
    return message.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()[:MAX_MESSAGE_LENGTH]
