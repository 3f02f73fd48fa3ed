"""Cancelling operations on a real database, at every point of their life."""

import asyncio
from typing import Any

import pytest

from libs.common.errors import Conflict, Unavailable
from libs.common.operations import (
    Backoff,
    Operation,
    OperationNotCancellable,
    OperationNotFound,
    Saga,
    State,
    Step,
    StepContext,
)
from libs.common.uow import UnitOfWork
from tests.integration.common.operations_lab import Eventually, Lab


class Work:
    """A saga of two steps whose second waits; notes what happens."""

    def __init__(self, **options: Any) -> None:
        self.log: list[str] = []
        self.waiting = asyncio.Event()
        self.go = asyncio.Event()
        interruptible = options.pop("interruptible", True)
        self.saga = Saga(
            "work",
            [
                Step("first", self.first, self.undo_first),
                Step("wait", self.wait, self.undo_wait, interruptible=interruptible),
                Step("last", self.last),
            ],
            on_end=self.on_end,
            **{"cancellable": True} | options,
        )

    async def first(self, _context: StepContext) -> None:
        self.log.append("first")

    async def undo_first(self, _context: StepContext) -> None:
        self.log.append("undo first")

    async def wait(self, context: StepContext) -> None:
        self.log.append("wait")
        self.waiting.set()
        await self.go.wait()
        self.log.append(f"waited, cancelled={context.cancelled}")

    async def undo_wait(self, _context: StepContext) -> None:
        self.log.append("undo wait")

    async def last(self, _context: StepContext) -> None:
        self.log.append("last")

    async def on_end(self, _uow: UnitOfWork, operation: Operation) -> None:
        self.log.append(f"end {operation.state}")


async def test_an_operation_that_has_not_begun_is_cancelled_at_once(lab: Lab) -> None:
    work = Work(cancellable=False)
    operation_id = await lab.enqueue("work")
    operation = await lab.operations(work.saga).cancel(operation_id)
    assert operation.state is State.CANCELLED
    stored = await lab.get(operation_id)
    assert (stored.state, stored.attempts) == (State.CANCELLED, 0)
    assert stored.finished_at is not None
    assert work.log == ["end cancelled"]
    assert (await lab.operations(work.saga).cancel(operation_id)).state is State.CANCELLED


async def test_a_running_step_is_broken_off_and_all_is_undone(lab: Lab, eventually: Eventually) -> None:
    work = Work()
    operation_id = await lab.enqueue("work")
    runner = await lab.runner(work.saga, lease_s=60)
    await asyncio.wait_for(work.waiting.wait(), 15)
    operation = await runner.operations.cancel(operation_id)
    assert (operation.state, operation.cancel_requested) == (State.RUNNING, True)
    await eventually(lambda: lab.ended(operation_id), 15)
    ended = await lab.get(operation_id)
    assert (ended.state, ended.error) == (State.CANCELLED, None)
    assert work.log == ["first", "wait", "undo wait", "undo first", "end cancelled"]


async def test_a_step_that_must_not_be_broken_off_ends_before_the_undoing(lab: Lab, eventually: Eventually) -> None:
    work = Work(interruptible=False)
    operation_id = await lab.enqueue("work")
    runner = await lab.runner(work.saga, lease_s=60)
    await asyncio.wait_for(work.waiting.wait(), 15)
    await runner.operations.cancel(operation_id)
    (held,) = runner._held
    await eventually(lambda: held.execution.cancel_requested)
    work.go.set()
    await eventually(lambda: lab.ended(operation_id))
    assert work.log == ["first", "wait", "waited, cancelled=True", "undo wait", "undo first", "end cancelled"]


async def test_a_cancellation_reaches_a_runner_that_hears_no_notifications(lab: Lab, eventually: Eventually) -> None:
    work = Work()
    operation_id = await lab.enqueue("work")
    await lab.runner(work.saga, lease_s=0.6)
    await asyncio.wait_for(work.waiting.wait(), 15)
    await lab.sql("UPDATE operations SET cancel_requested = true WHERE id = :id", id=operation_id)
    await eventually(lambda: lab.ended(operation_id))
    assert (await lab.get(operation_id)).state is State.CANCELLED


async def test_an_operation_that_waits_for_a_retry_is_cancelled_without_waiting(
    lab: Lab, eventually: Eventually
) -> None:
    undone = asyncio.Event()

    async def fail(_context: StepContext) -> None:
        raise Unavailable("away", retry_after_s=3600)

    async def undo(_context: StepContext) -> None:
        undone.set()

    operation_id = await lab.enqueue("retry")
    runner = await lab.runner(Saga("retry", [Step("a", fail, undo)], cancellable=True), backoff=Backoff())

    async def waits() -> bool:
        operation = await lab.get(operation_id)
        return operation.state is State.RUNNING and operation.lease_holder is None

    await eventually(waits)
    await runner.operations.cancel(operation_id)
    await eventually(lambda: lab.ended(operation_id), 15)
    assert (await lab.get(operation_id)).state is State.CANCELLED
    assert undone.is_set()


async def test_a_cancellation_that_crosses_a_retry_does_not_wait_for_it(lab: Lab, eventually: Eventually) -> None:
    async def fail(context: StepContext) -> None:
        await lab.sql("UPDATE operations SET cancel_requested = true WHERE id = :id", id=context.operation_id)
        raise Unavailable("away", retry_after_s=3600)

    operation_id = await lab.enqueue("crossing")
    await lab.runner(Saga("crossing", [Step("a", fail)], cancellable=True), lease_s=60)
    await eventually(lambda: lab.ended(operation_id), 15)
    assert (await lab.get(operation_id)).state is State.CANCELLED


async def test_a_cancellation_between_the_last_step_and_the_end_still_undoes_everything(
    lab: Lab, eventually: Eventually
) -> None:
    log: list[str] = []

    async def run(context: StepContext) -> None:
        await lab.sql("UPDATE operations SET cancel_requested = true WHERE id = :id", id=context.operation_id)

    async def undo(_context: StepContext) -> None:
        log.append("undo")

    operation_id = await lab.enqueue("late")
    await lab.runner(Saga("late", [Step("a", run, undo)], cancellable=True), lease_s=60)
    await eventually(lambda: lab.ended(operation_id))
    assert (await lab.get(operation_id)).state is State.CANCELLED
    assert log == ["undo"]


async def test_a_kind_that_cannot_be_cancelled_is_a_conflict_that_says_why(lab: Lab, eventually: Eventually) -> None:
    work = Work(cancellable=False)
    operation_id = await lab.enqueue("work")
    runner = await lab.runner(work.saga)
    await asyncio.wait_for(work.waiting.wait(), 15)
    with pytest.raises(OperationNotCancellable, match="run to their end once begun"):
        await runner.operations.cancel(operation_id)
    work.go.set()
    await eventually(lambda: lab.ended(operation_id))
    with pytest.raises(OperationNotCancellable, match="It has ended: succeeded"):
        await runner.operations.cancel(operation_id)


async def test_an_operation_that_is_being_undone_cannot_be_cancelled(lab: Lab, eventually: Eventually) -> None:
    undoing, go = asyncio.Event(), asyncio.Event()

    async def fail(_context: StepContext) -> None:
        raise Conflict("no")

    async def undo(_context: StepContext) -> None:
        undoing.set()
        await go.wait()

    operation_id = await lab.enqueue("undoing")
    runner = await lab.runner(Saga("undoing", [Step("a", fail, undo)], cancellable=True))
    await asyncio.wait_for(undoing.wait(), 20)
    with pytest.raises(OperationNotCancellable, match="being undone already"):
        await runner.operations.cancel(operation_id)
    go.set()
    await eventually(lambda: lab.ended(operation_id))
    assert (await lab.get(operation_id)).state is State.FAILED


async def test_another_owners_operation_is_not_found(lab: Lab) -> None:
    operation_id = await lab.enqueue("work", owner="ada")
    operations = lab.operations(Work().saga)
    with pytest.raises(OperationNotFound):
        await operations.cancel(operation_id, owner_id="bob")
    with pytest.raises(OperationNotFound):
        await operations.get(operation_id, owner_id="bob")
    assert (await operations.get(operation_id, owner_id="ada")).state is State.PENDING
