"""Sagas on a real database: order, retries, undoing and other ways."""

import asyncio
from typing import Any

import pytest

from libs.common.bus.protocol import TransientFailure
from libs.common.errors import Conflict, Unavailable
from libs.common.operations import (
    Operation,
    RetryFrom,
    RetryLater,
    Saga,
    State,
    Step,
    StepContext,
    StepState,
)
from tests.integration.common.operations_lab import Eventually, Lab, Log, refuse, run_to_end, step


async def test_steps_run_in_order_and_see_input_and_earlier_results(lab: Lab, eventually: Eventually) -> None:
    seen: list[Any] = []
    log: Log = []

    async def look(context: StepContext) -> None:
        seen.append((dict(context.input), dict(context.results)))

    operation = await run_to_end(lab, Saga("ok", [step(log, "a"), step(log, "b", look)]), eventually, cores=2)
    assert (operation.state, operation.progress, operation.message) == (State.SUCCEEDED, 1.0, "Done")
    assert seen == [({"cores": 2}, {"a": {"made": "a"}})]
    assert log == ["a", "b"]
    assert operation.lease_holder is None
    assert operation.finished_at is not None


async def test_a_fatal_failure_undoes_all_begun_steps_in_reverse_order(lab: Lab, eventually: Eventually) -> None:
    log: Log = []
    saga = Saga("bad", [step(log, "a"), step(log, "b"), step(log, "c", refuse), step(log, "d")])
    operation = await run_to_end(lab, saga, eventually)
    assert log == ["a", "b", "c", "undo c", "undo b", "undo a"]
    assert operation.state is State.FAILED
    assert operation.error is not None
    assert len(operation.error.pop("trace_id")) == 32
    assert operation.error == {
        "type": "/problems/conflict",
        "title": Conflict.title,
        "status": 409,
        "detail": "The name is taken",
        "instance": f"/api/v1/operations/{operation.id}",
    }
    assert [record.state for record in operation.steps] == [*[StepState.UNDONE] * 3, StepState.PENDING]


@pytest.mark.parametrize("failure", [Unavailable("away"), TransientFailure("away"), RetryLater(0, "away"), OSError(5)])
async def test_a_passing_failure_is_tried_again_and_its_checkpoint_is_kept(
    lab: Lab, eventually: Eventually, failure: Exception
) -> None:
    tries: list[dict[str, Any]] = []

    async def shaky(context: StepContext) -> None:
        tries.append(dict(context.checkpoint))
        await context.save(last=context.attempt)
        if context.attempt < 3:
            raise failure

    operation = await run_to_end(lab, Saga("shaky", [step([], "a", shaky)]), eventually)
    assert operation.state is State.SUCCEEDED
    assert tries == [{}, {"last": 1}, {"last": 2}]
    assert operation.steps[0].attempts == 2


@pytest.mark.parametrize(
    ("failure", "slug"),
    [
        (Unavailable("away"), "unavailable"),
        (RetryLater(0, "the guest does not answer"), "step-gave-up"),
        (RuntimeError("secret words"), "internal"),
    ],
)
async def test_a_failure_that_stays_is_fatal_after_the_last_attempt(
    lab: Lab, eventually: Eventually, failure: Exception, slug: str
) -> None:
    log: Log = []

    async def fail(_context: StepContext) -> None:
        raise failure

    operation = await run_to_end(lab, Saga("stays", [step(log, "a", fail, max_attempts=3)]), eventually)
    assert log == ["a", "a", "a", "undo a"]
    assert operation.state is State.FAILED
    assert operation.error is not None
    assert operation.error["type"] == f"/problems/{slug}"
    assert "secret words" not in str(operation)


async def test_a_step_that_takes_too_long_is_broken_off_and_tried_again(lab: Lab, eventually: Eventually) -> None:
    broken_off: list[int] = []

    async def slow(context: StepContext) -> None:
        try:
            await asyncio.Event().wait() if context.attempt == 1 else None
        finally:
            broken_off.append(context.attempt)

    operation = await run_to_end(lab, Saga("slow", [step([], "a", slow, timeout_s=0.05)]), eventually)
    assert operation.state is State.SUCCEEDED
    assert broken_off == [1, 2]


async def test_a_result_that_cannot_be_stored_is_the_steps_failure(lab: Lab, eventually: Eventually) -> None:
    async def strange(_context: StepContext) -> dict[str, Any]:
        return {"not json": object()}

    operation = await run_to_end(lab, Saga("strange", [step([], "a", strange, max_attempts=2)]), eventually)
    assert operation.state is State.FAILED


async def test_texts_that_postgresql_refuses_do_not_stop_an_operation(lab: Lab, eventually: Eventually) -> None:
    async def odd(context: StepContext) -> dict[str, Any]:
        await context.save(raw="nul \x00 surrogate \ud800 path C:\\u0000")
        await context.progress(0.5, "nul \x00 surrogate \ud800")
        return {"raw": "\x00"}

    operation = await run_to_end(lab, Saga("odd", [step([], "a", odd)]), eventually)
    assert operation.state is State.SUCCEEDED
    assert operation.steps[0].result == {"raw": "\ufffd"}


async def test_a_step_that_fails_on_one_node_goes_back_and_takes_the_next(lab: Lab, eventually: Eventually) -> None:
    log: Log = []

    async def place(context: StepContext) -> dict[str, Any]:
        tried = context.memo.setdefault("tried", [])
        node = next(node for node in ("pve1", "pve2", "pve3") if node not in tried)
        context.memo["tried"] = [*tried, node]
        return {"node": node}

    async def clone(context: StepContext) -> dict[str, Any]:
        assert context.checkpoint == {}, "a new try must not see the checkpoint of the old one"
        node = context.results["place"]["node"]
        await context.save(node=node)
        if node != "pve3":
            raise RetryFrom("place", reason=f"{node} is full")
        return {"node": node}

    saga = Saga("failover", [step(log, "reserve"), step(log, "place", place), step(log, "clone", clone)])
    operation = await run_to_end(lab, saga, eventually)
    assert operation.state is State.SUCCEEDED
    assert operation.memo == {"tried": ["pve1", "pve2", "pve3"]}
    once = ["place", "clone", "undo clone", "undo place"]
    assert log == ["reserve", *once, *once, "place", "clone"]
    assert operation.steps[2].result == {"node": "pve3"}


async def test_going_back_without_undo_just_runs_the_steps_again(lab: Lab, eventually: Eventually) -> None:
    log: Log = []

    async def second(context: StepContext) -> None:
        if not context.memo.get("again"):
            context.memo["again"] = True
            raise RetryFrom("a", undo=False)

    operation = await run_to_end(lab, Saga("again", [step(log, "a"), step(log, "b", second)]), eventually)
    assert operation.state is State.SUCCEEDED
    assert log == ["a", "b", "a", "b"]


async def test_going_back_to_a_step_that_does_not_exist_fails_at_once(lab: Lab, eventually: Eventually) -> None:
    log: Log = []

    async def lost(_context: StepContext) -> None:
        raise RetryFrom("nowhere")

    operation = await run_to_end(lab, Saga("lost", [step(log, "a", lost)]), eventually)
    assert operation.state is State.FAILED
    assert log == ["a", "undo a"]


async def test_an_operation_without_steps_left_in_the_code_waits_instead_of_being_lost(
    lab: Lab, eventually: Eventually
) -> None:
    operation_id = await lab.enqueue("renamed")
    await lab.sql(
        'UPDATE operations SET steps = \'[{"name": "old", "state": "done"}]\' WHERE id = :id', id=operation_id
    )
    await lab.runner(Saga("renamed", [step([], "new")]))

    async def interrupted() -> bool:
        return (await lab.get(operation_id)).message.startswith("Interrupted")

    await eventually(interrupted)
    assert (await lab.get(operation_id)).state is State.RUNNING


async def test_a_step_that_is_not_needed_is_skipped_and_neither_run_nor_undone(
    lab: Lab, eventually: Eventually
) -> None:
    log: Log = []

    def wanted(operation: Operation) -> bool:
        return bool(operation.input["seed"])

    def saga(kind: str, *end: Step) -> Saga:
        return Saga(kind, [step(log, "a"), step(log, "seed", needed=wanted), step(log, "b"), *end])

    done = await run_to_end(lab, saga("without"), eventually, seed=False)
    assert (done.state, done.progress, log) == (State.SUCCEEDED, 1.0, ["a", "b"])
    assert [record.state for record in done.steps] == [StepState.DONE, StepState.SKIPPED, StepState.DONE]
    log.clear()
    failed = await run_to_end(lab, saga("undone", step(log, "c", refuse)), eventually, seed=False)
    assert log == ["a", "b", "c", "undo c", "undo b", "undo a"]
    assert [record.state for record in failed.steps][1] is StepState.SKIPPED
    log.clear()
    assert (await run_to_end(lab, saga("with"), eventually, seed=True)).state is State.SUCCEEDED
    assert log == ["a", "seed", "b"]


async def test_going_back_to_a_step_that_is_not_needed_goes_on_behind_it(lab: Lab, eventually: Eventually) -> None:
    log: Log = []

    async def turn(context: StepContext) -> None:
        if not context.memo.get("turned"):
            context.memo["turned"] = True
            raise RetryFrom("seed", reason="again")

    steps = [step(log, "a"), step(log, "seed", needed=lambda _operation: False), step(log, "b", turn)]
    operation = await run_to_end(lab, Saga("turns", steps), eventually)
    assert (operation.state, log) == (State.SUCCEEDED, ["a", "b", "undo b", "b"])


async def test_a_step_that_saves_first_is_stored_as_begun_with_what_it_saves(lab: Lab, eventually: Eventually) -> None:
    seen: list[Any] = []

    async def stored(context: StepContext) -> list[tuple[str, Any]]:
        return [(record.state, record.checkpoint) for record in (await lab.get(context.operation_id)).steps]

    async def save(context: StepContext) -> None:
        seen.append(await stored(context))
        await context.save(intended=True)
        seen.append(await stored(context))

    saga = Saga("quiet", [step([], "a"), step([], "b", save, saves_first=True)])
    operation = await run_to_end(lab, saga, eventually)
    assert operation.state is State.SUCCEEDED
    before, after = seen
    assert before == [(StepState.RUNNING, {}), (StepState.PENDING, {})]
    assert after == [(StepState.DONE, {}), (StepState.RUNNING, {"intended": True})]


async def test_what_a_step_keeps_in_memory_is_there_for_the_next_and_not_after_a_retry(
    lab: Lab, eventually: Eventually
) -> None:
    seen: list[Any] = []

    async def keep(context: StepContext) -> None:
        context.kept["record"] = "read"

    async def look(context: StepContext) -> None:
        seen.append(dict(context.kept))
        if context.attempt == 1:
            raise RetryLater(0, "later")

    await run_to_end(lab, Saga("keeps", [step([], "a", keep), step([], "b", look)]), eventually)
    assert seen == [{"record": "read"}, {}]
