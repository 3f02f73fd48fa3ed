"""What a saga tells of itself on its way, and its end's one transaction."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from libs.common.errors import Conflict, Unavailable
from libs.common.operations import (
    Operation,
    OperationNotResumable,
    Saga,
    State,
    StepContext,
)
from libs.common.uow import UnitOfWork
from tests.integration.common.operations_lab import Eventually, Lab, Log, refuse, run_to_end, step


async def test_an_undo_that_keeps_failing_needs_an_operator_and_goes_on_when_resumed(
    lab: Lab, eventually: Eventually
) -> None:
    log: Log = []
    repaired = False
    ends: list[State] = []

    async def undo(_context: StepContext) -> None:
        log.append("try to undo b")
        if not repaired:
            raise Conflict("The disk is locked")

    async def on_end(_uow: UnitOfWork, operation: Operation) -> None:
        ends.append(operation.state)

    steps = [step(log, "a"), step(log, "b", undo=undo, max_attempts=2), step(log, "c", refuse)]
    saga = Saga("stuck", steps, on_end=on_end)
    operation = await run_to_end(lab, saga, eventually)
    assert operation.state is State.NEEDS_OPERATOR
    assert operation.message == "Undoing 'b' failed: The disk is locked. Left to undo: b, a"
    assert log == ["a", "b", "c", "undo c", "try to undo b", "try to undo b"]

    repaired = True
    resumed = await lab.operations(saga).resume(operation.id)
    assert resumed.state is State.PENDING
    await eventually(lambda: lab.ended(operation.id))
    operation = await lab.get(operation.id)
    assert (operation.state, operation.error and operation.error["detail"]) == (State.FAILED, "The name is taken")
    assert log[6:] == ["try to undo b", "undo a"]
    assert ends == [State.NEEDS_OPERATOR, State.FAILED]
    with pytest.raises(OperationNotResumable):
        await lab.operations(saga).resume(operation.id)


async def test_a_resource_whose_operation_needs_an_operator_can_still_be_worked_on(
    lab: Lab, eventually: Eventually
) -> None:
    async def undo(_context: StepContext) -> None:
        raise Conflict("locked")

    stuck = Saga("stuck", [step([], "a", refuse, undo=undo, max_attempts=1)])
    delete = Saga("delete", [step([], "a")])
    first = await lab.enqueue("stuck", resource="vm-7")
    second = await lab.enqueue("delete", resource="vm-7")
    await lab.runner(stuck, delete)
    await eventually(lambda: lab.ended(second))
    assert (await lab.get(first)).state is State.NEEDS_OPERATOR
    assert (await lab.get(second)).state is State.SUCCEEDED


async def test_the_end_and_what_the_service_does_at_it_commit_together(lab: Lab, eventually: Eventually) -> None:
    await lab.sql("CREATE TABLE IF NOT EXISTS ends (operation text)")
    failures = [RuntimeError("first"), Unavailable("second")]

    async def on_end(uow: UnitOfWork, operation: Operation) -> None:
        connection = await uow.session.connection()
        await connection.execute(text("INSERT INTO ends VALUES (:id)"), {"id": operation.id})
        if failures:
            raise failures.pop()

    log: Log = []
    saga = Saga("ends", [step(log, "a")], on_end=on_end)
    operation = await run_to_end(lab, saga, eventually)
    assert operation.state is State.SUCCEEDED
    assert operation.attempts == 3, "each failed end was rolled back and tried again"
    assert log == ["a"], "the step was stored before the end was tried again"
    assert len(await lab.sql("SELECT * FROM ends WHERE operation = :id", id=operation.id)) == 1


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED])
async def test_the_service_hears_of_the_final_state(lab: Lab, eventually: Eventually, state: State) -> None:
    ends: list[tuple[State, Any]] = []

    async def on_end(_uow: UnitOfWork, operation: Operation) -> None:
        ends.append((operation.state, operation.error and operation.error["detail"]))

    run = refuse if state is State.FAILED else None
    await run_to_end(lab, Saga("heard", [step([], "a", run)], on_end=on_end), eventually)
    assert ends == [(state, "The name is taken" if run else None)]


async def test_progress_is_the_weighted_sum_of_steps_and_is_written_once_a_second(
    lab: Lab, eventually: Eventually
) -> None:
    seen: list[tuple[float, str]] = []

    async def half(context: StepContext) -> None:
        for tenth in range(1, 6):
            await context.progress(tenth / 10, f"{tenth}0 %")
        stored = await lab.get(context.operation_id)
        seen.append((stored.progress, stored.message))
        seen.append((context.operation.progress, context.operation.message))

    saga = Saga("weights", [step([], "a", weight=1), step([], "b", half, weight=3)])
    operation = await run_to_end(lab, saga, eventually)
    assert operation.progress == 1.0
    (stored, stored_message), (known, known_message) = seen
    assert (stored_message, known_message) == ("10 %", "50 %")
    assert stored == pytest.approx(0.325)
    assert known == pytest.approx(0.625)


async def test_progress_that_is_no_news_is_not_written(lab: Lab, eventually: Eventually) -> None:
    written: list[Any] = []

    async def wait(context: StepContext) -> None:
        for _ in range(3):
            await context.progress(0.5)
            written.append((await lab.get(context.operation_id)).updated_at)
            await asyncio.sleep(1.1)  # longer than the least time between two writes

    await run_to_end(lab, Saga("waits", [step([], "a", wait)]), eventually)
    assert len(set(written)) == 1
