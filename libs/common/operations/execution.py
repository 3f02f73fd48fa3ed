"""One operation under one lease: runs its steps forward, undoes them backward, stores each before the next."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog

from libs.common.clock import rfc3339
from libs.common.errors import Unavailable
from libs.common.operations.attempt import Attempt, BrokenOff
from libs.common.operations.context import StepContext, readable, storable
from libs.common.operations.failures import Backoff, Failure, failure_of
from libs.common.operations.model import Direction, Json, Operation, State, StepRecord, StepState
from libs.common.operations.saga import RetryFrom, RetryLater, Saga, Step
from libs.common.operations.store import OperationStore
from libs.common.problems import problem
from libs.common.telemetry import Metrics, parent_context, tracer

END_TIMEOUT_S = 30.0
WRITE_RETRY_S = 0.2

T = TypeVar("T")

_log = structlog.get_logger()


class Execution:
    """Works on a claimed operation until it ends, has to wait, or is told to stop.

    `leased` tells whether the operation is still held after `run`; `retry_in_s` is set if it waits for a retry.
    """

    def __init__(
        self, operation: Operation, saga: Saga, store: OperationStore, metrics: Metrics, backoff: Backoff
    ) -> None:
        self.operation = operation
        self.cancel_requested = operation.cancel_requested
        self.stopping = False
        self.leased = True
        self.kept: dict[str, Any] = {}
        self.retry_in_s: float | None = None
        self._saga = saga
        self._store = store
        self._metrics = metrics
        self._backoff = backoff
        self._current: Attempt | None = None
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Go on from the last stored step. Raises LeaseLost; cancelling the task breaks off and stores nothing."""
        operation = self.operation
        carrier = {"traceparent": operation.traceparent} if operation.traceparent else {}
        names = {"telar.operation": operation.id, "telar.kind": operation.kind, "telar.resource": operation.resource_id}
        with (
            structlog.contextvars.bound_contextvars(operation_id=operation.id, kind=operation.kind),
            tracer().start_as_current_span(
                f"operation {operation.kind}", context=parent_context(carrier), attributes=names
            ),
        ):
            try:
                operation.steps = self._saga.records(operation.steps)
                while self.leased and not self.stopping:
                    await self._go_on()
            except Exception as error:  # noqa: BLE001 - whatever it is, the operation must not be tried in a hot loop
                _log.exception("operation_interrupted", error=type(error).__name__)
                await self._postpone(5 + self._backoff.delay_s(operation.attempts), "Interrupted; it goes on shortly")

    def request_cancel(self) -> None:
        """Turn back at the next boundary, breaking off the step under way if it allows that."""
        if not self.cancel_requested:
            self.cancel_requested = True
            if self._current is not None:
                self._current.break_off()

    async def write(self) -> None:
        """Store the operation as it is; tried again while the database is away, until the lease is lost."""
        if await self._until_stored(self._store.write):
            self.request_cancel()

    async def _go_on(self) -> None:
        operation = self.operation
        if operation.direction is Direction.FORWARD:
            self._saga.skip(operation)
            record = operation.next_to_run()
            if self.cancel_requested:
                await self._turn_back("Cancelling")
            elif record is None:
                await self._end(State.SUCCEEDED, "Done")
            else:
                await self._run_step(record)
            return
        if self.cancel_requested:
            operation.back_to = None
        left = operation.left_to_undo()
        if left:
            await self._undo_step(left[0])
        elif operation.back_to is not None:
            await self._turn_forward(operation.back_to)
        elif operation.error is not None:
            await self._end(State.FAILED, str(operation.error.get("detail", "")))
        else:
            await self._end(State.CANCELLED, "Cancelled; what had been done is undone")

    # Forward

    async def _run_step(self, record: StepRecord) -> None:
        step = self._saga.step(record.name)
        if record.state is StepState.PENDING:
            self._begin(record)
            if not step.saves_first:
                await self.write()
        try:
            result = await self._attempt(step, record)
        except RetryFrom as turn:
            await self._go_another_way(record, turn)
        except BrokenOff:
            if not (self.cancel_requested or self.stopping):
                await self._step_failed(step, record, RuntimeError("the step cancelled itself"))
        except Exception as error:  # noqa: BLE001 - every failure of a step is judged in one place
            await self._step_failed(step, record, error)
        else:
            record.state, record.result, record.finished_at = StepState.DONE, result, _now()
            await self._step_done()

    async def _step_done(self) -> None:
        operation = self.operation
        operation.progress = self._saga.progress(operation)
        following = operation.next_to_run()
        if following is None:
            return  # stored with the end
        if self._saga.step(following.name).saves_first and not self.stopping:
            return  # stored with its first save
        self._begin(following)
        await self.write()
        if self.cancel_requested:  # the write told so: the step just marked was never begun, and needs no undoing
            operation.steps[operation.index(following.name)] = StepRecord(following.name)

    def _begin(self, record: StepRecord) -> None:
        record.state = StepState.RUNNING
        record.started_at = _now()
        self.operation.step = record.name
        self.operation.message = ""

    async def _step_failed(self, step: Step, record: StepRecord, error: Exception) -> None:
        record.attempts += 1
        failure = failure_of(error, step.name)
        self._tell(record, failure, error)
        if failure.retryable and record.attempts < step.max_attempts and not self.cancel_requested:
            delay_s = failure.delay_s(self._backoff, record.attempts)
            await self._postpone(delay_s, f"Trying '{step.name}' again: {_reason(error, failure)}")
            return
        record.state, record.finished_at = StepState.FAILED, _now()
        if not self.cancel_requested:
            self.operation.error = storable(problem(failure.error, instance=f"/api/v1/operations/{self.operation.id}"))
        await self._turn_back(failure.error.detail)

    async def _go_another_way(self, record: StepRecord, turn: RetryFrom) -> None:
        operation = self.operation
        if turn.step not in [known.name for known in operation.steps[: operation.index(record.name) + 1]]:
            missing = ValueError(f"{operation.kind} has no step {turn.step} up to {record.name}")
            await self._step_failed(replace(self._saga.step(record.name), max_attempts=1), record, missing)
            return
        _log.info("operation_goes_another_way", step=record.name, back_to=turn.step, reason=turn.reason)
        operation.memo = storable(operation.memo)
        if turn.undo:
            record.state = StepState.FAILED
            operation.back_to = turn.step
            await self._turn_back(turn.reason or f"Going back to '{turn.step}'")
        else:
            await self._turn_forward(turn.step)

    async def _turn_back(self, message: str) -> None:
        self.operation.direction = Direction.BACKWARD
        self.operation.message = readable(message)
        await self.write()

    # Backward

    async def _turn_forward(self, step: str) -> None:
        operation = self.operation
        operation.forget_from(step)
        operation.direction, operation.back_to = Direction.FORWARD, None
        self._saga.skip(operation)
        following = operation.next_to_run()
        if following is not None:
            self._begin(following)
        operation.progress = self._saga.progress(operation)
        await self.write()

    async def _undo_step(self, record: StepRecord) -> None:
        step = self._saga.step(record.name)
        if step.undo is not None:
            if record.state is not StepState.UNDOING:
                record.state, record.attempts = StepState.UNDOING, 0
                self.operation.step = record.name
                await self.write()
            try:
                await self._attempt(step, record, undo=True)
            except BrokenOff:
                if not self.stopping:
                    await self._undo_failed(step, record, RuntimeError("the undo cancelled itself"))
                return
            except Exception as error:  # noqa: BLE001 - every failure of an undo is judged in one place
                await self._undo_failed(step, record, error)
                return
        record.state, record.finished_at = StepState.UNDONE, _now()

    async def _undo_failed(self, step: Step, record: StepRecord, error: Exception) -> None:
        record.attempts += 1
        failure = failure_of(error, step.name)
        self._tell(record, failure, error)
        reason = _reason(error, failure)
        if record.attempts < step.max_attempts:
            delay_s = failure.delay_s(self._backoff, record.attempts)
            await self._postpone(delay_s, f"Trying to undo '{step.name}' again: {reason}")
            return
        left = ", ".join(waiting.name for waiting in self.operation.left_to_undo())
        await self._end(State.NEEDS_OPERATOR, f"Undoing '{step.name}' failed: {reason}. Left to undo: {left}")

    # Both

    async def _attempt(self, step: Step, record: StepRecord, *, undo: bool = False) -> Json | None:
        context = StepContext(
            self.operation, record, self, lambda fraction: self._saga.progress(self.operation, fraction)
        )
        self._current = Attempt(step, context, undo=undo)
        try:
            return await self._current.outcome()
        finally:
            self._current = None

    async def _postpone(self, delay_s: float, message: str) -> None:
        self.operation.message = readable(message)
        await self._until_stored(lambda operation: self._store.postpone(operation, delay_s))
        self.leased, self.retry_in_s = False, 0.0 if self.cancel_requested else delay_s

    async def _until_stored(self, store: Callable[[Operation], Awaitable[T]]) -> T:
        """Write in order, again and again while the database is away; the lease's end cancels the attempt."""
        async with self._writing:
            while True:
                try:
                    return await store(self.operation)
                except Unavailable as error:
                    _log.warning("operation_write_waits", error=error.slug)
                    await asyncio.sleep(WRITE_RETRY_S)

    async def _end(self, state: State, message: str) -> None:
        progress = 1.0 if state is State.SUCCEEDED else self.operation.progress
        final = replace(self.operation, state=state, progress=progress, message=readable(message))
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                ended = await self._store.finish(final, self._saga.on_end)
        except Exception as error:  # noqa: BLE001 - the end belongs to the service's code; it is tried again for ever
            if isinstance(error, Unavailable):
                _log.warning("operation_end_waits", state=state, error=error.slug)
            else:
                _log.exception("operation_end_failed", state=state, error=type(error).__name__)
            await self._postpone(self._backoff.delay_s(self.operation.attempts), "Its end could not be stored yet")
            return
        if not ended:
            self.request_cancel()
            return
        self.operation, self.leased = final, False
        self._metrics.operations.labels(self._metrics.service, final.kind, state).inc()
        log = _log.error if state is State.NEEDS_OPERATOR else _log.info
        log("operation_ended", state=state, attempts=final.attempts, message=final.message)

    def _tell(self, record: StepRecord, failure: Failure, error: Exception) -> None:
        known: dict[str, Any] = {"step": record.name, "attempts": record.attempts, "error": type(error).__name__}
        if failure.surprise:
            _log.error("operation_step_surprised", **known, exc_info=error)
        else:
            _log.warning("operation_step_failed", **known, detail=failure.error.detail)


def _reason(error: Exception, failure: Failure) -> str:
    """What a waiting owner reads: the words of an expected failure, never those of a surprise."""
    return error.reason if isinstance(error, RetryLater) else failure.error.detail


def _now() -> str:
    return rfc3339(datetime.now(UTC))
