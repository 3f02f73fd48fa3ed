"""One attempt at a step or at its undoing: a task of its own, bounded in time, that can be broken off."""

import asyncio

import structlog
from opentelemetry import trace

from libs.common.operations.context import StepContext, storable
from libs.common.operations.errors import StepTimedOut
from libs.common.operations.model import Json
from libs.common.operations.saga import Step
from libs.common.telemetry import tracer


class BrokenOff(Exception):
    """The attempt was cancelled: on its owner's wish, because the runner closes, or by the step itself."""


class Attempt:
    """Calls `step.run`, or `step.undo`, once."""

    def __init__(self, step: Step, context: StepContext, *, undo: bool) -> None:
        self._step = step
        self._context = context
        self._undo = undo
        self._task: asyncio.Task[Json | None] | None = None

    def break_off(self) -> None:
        """Cancel a step that allows it; an undo always goes to its end."""
        if self._task is not None and self._step.interruptible and not self._undo:
            self._task.cancel()

    async def outcome(self) -> Json | None:
        """Run it and give its storable result; raises what it raises, StepTimedOut or BrokenOff."""
        name = f"{'undo' if self._undo else 'step'} {self._step.name}"
        with (
            structlog.contextvars.bound_contextvars(step=self._step.name),
            tracer().start_as_current_span(
                name,
                attributes={"telar.attempt": self._context.attempt},
                record_exception=False,  # a surprise's words belong in the log, where secrets are redacted
                set_status_on_exception=False,
            ) as span,
        ):
            self._task = asyncio.create_task(self._limited(), name=f"{self._context.operation_id} {name}")
            try:
                return await _outlived(self._task)
            except Exception as error:
                span.set_status(trace.StatusCode.ERROR, type(error).__name__)
                raise

    async def _limited(self) -> Json | None:
        function = self._step.undo if self._undo else self._step.run
        if function is None:
            return None
        try:
            async with asyncio.timeout(self._step.timeout_s) as limit:
                result = await function(self._context)
        except TimeoutError as error:
            if limit.expired():
                raise StepTimedOut(f"Step '{self._step.name}' took longer than {self._step.timeout_s:g} s") from error
            raise
        return None if result is None else storable(result)


async def _outlived(task: asyncio.Task[Json | None]) -> Json | None:
    """Wait for a task's end, also when the waiting itself is cancelled: no step may outlive its lease's release."""
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it as forgotten
        raise
    if task.cancelled():
        raise BrokenOff
    return task.result()
