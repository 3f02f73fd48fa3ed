"""The pure parts of operations: records, sagas, failures, what may be stored."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from libs.common.bus.protocol import TransientFailure
from libs.common.errors import Conflict, StorageFull, TelarError, Throttled, Unavailable, UpstreamTimeout
from libs.common.operations import (
    Backoff,
    Direction,
    Operation,
    OperationRunner,
    RetryLater,
    Saga,
    State,
    Step,
    StepContext,
    StepRecord,
    StepState,
)
from libs.common.operations.context import readable, storable
from libs.common.operations.failures import failure_of
from libs.common.telemetry import Metrics

NOW = datetime(2026, 11, 21, tzinfo=UTC)


async def nothing(_context: StepContext) -> None:
    return None


def saga(*names: str) -> Saga:
    return Saga("kind", [Step(name, nothing, weight=weight) for weight, name in enumerate(names, 1)])


def operation(*states: StepState, back_to: str | None = None) -> Operation:
    return Operation(
        id="op_lab_0",
        kind="kind",
        resource_type="vm",
        resource_id="1",
        owner_id="ada",
        state=State.RUNNING,
        direction=Direction.FORWARD,
        step=None,
        progress=0.0,
        message="",
        error=None,
        attempts=1,
        input={},
        memo={"kept": True},
        steps=[StepRecord(name, state, attempts=1) for name, state in zip("abcdef", states, strict=False)],
        back_to=back_to,
        lease_holder=None,
        cancel_requested=False,
        traceparent=None,
        created_at=NOW,
        updated_at=NOW,
        finished_at=None,
    )


@pytest.mark.parametrize("state", State)
def test_only_pending_and_running_operations_are_unfinished(state: State) -> None:
    assert state.is_final == (state not in {State.PENDING, State.RUNNING})


def test_the_next_step_is_the_first_that_is_not_done() -> None:
    found = operation(StepState.DONE, StepState.RUNNING, StepState.PENDING).next_to_run()
    assert found is not None
    assert found.name == "b"
    assert operation(StepState.DONE, StepState.DONE).next_to_run() is None


@pytest.mark.parametrize(("back_to", "left"), [(None, "dcba"), ("c", "dc")])
def test_all_begun_steps_are_left_to_undo_in_reverse_down_to_where_it_turns(back_to: str | None, left: str) -> None:
    begun = operation(
        StepState.DONE,
        StepState.DONE,
        StepState.UNDOING,
        StepState.FAILED,
        StepState.UNDONE,
        StepState.PENDING,
        back_to=back_to,
    )
    assert "".join(record.name for record in begun.left_to_undo()) == left


def test_forgetting_from_a_step_leaves_the_earlier_ones_and_the_memo() -> None:
    half = operation(StepState.DONE, StepState.UNDONE, StepState.UNDONE)
    half.steps[1].checkpoint = {"upid": 1}
    half.forget_from("b")
    assert half.steps[0].state is StepState.DONE
    assert half.steps[1:] == [StepRecord("b"), StepRecord("c")]
    assert half.memo == {"kept": True}


def test_a_record_survives_its_way_through_json() -> None:
    record = StepRecord("a", StepState.UNDOING, {"x": 1}, 3, "2026-11-21T00:00:00.000Z", None, {"upid": "U"})
    assert StepRecord.from_json(record.to_json()) == record


def test_progress_is_weighed_and_never_above_one() -> None:
    weighed = saga("a", "b", "c")
    half = operation(StepState.DONE, StepState.RUNNING, StepState.PENDING)
    half.step = "b"
    assert weighed.progress(half, 0.5) == pytest.approx(2 / 6)
    assert weighed.progress(half, 7) == pytest.approx(3 / 6)
    assert saga().progress(operation()) == 0


def test_a_saga_that_grew_a_step_takes_up_older_operations() -> None:
    stored = operation(StepState.DONE, StepState.PENDING).steps
    assert [record.state for record in saga("a", "new", "b").records(stored)] == [
        StepState.DONE,
        StepState.PENDING,
        StepState.PENDING,
    ]
    assert [record.name for record in saga("a").records(stored)] == ["a"], "a step never begun may go"


def test_a_saga_that_lost_a_begun_step_refuses_older_operations() -> None:
    with pytest.raises(ValueError, match="no step b any more"):
        saga("a").records(operation(StepState.DONE, StepState.RUNNING).steps)


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (Unavailable("x"), True),
        (UpstreamTimeout("x"), True),
        (Throttled("x"), True),
        (TransientFailure("x"), True),
        (RetryLater(1, "x"), True),
        (OperationalError("SELECT", {}, psycopg.OperationalError("gone")), True),
        (Conflict("x"), False),
        (StorageFull("x"), False),
        (TelarError("x"), False),
        (RuntimeError("x"), True),
        (FileNotFoundError("x"), True),
    ],
)
def test_transient_failures_and_surprises_are_tried_again_and_refusals_are_final(
    error: Exception, retryable: bool
) -> None:
    assert failure_of(error, "clone").retryable is retryable


@pytest.mark.parametrize("error", [RuntimeError("password=hunter2"), FileNotFoundError("/etc/secret")])
def test_the_words_of_a_surprise_are_kept_from_the_owner(error: Exception) -> None:
    failure = failure_of(error, "clone")
    assert failure.surprise
    assert type(failure.error) is TelarError
    assert str(error) not in failure.error.detail


def test_delays_double_up_to_a_cap_with_full_jitter() -> None:
    backoff = Backoff(base_s=1, cap_s=10)
    for failures, ceiling in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (5000, 10)):
        delays = [backoff.delay_s(failures) for _ in range(200)]
        assert 0 <= min(delays) < ceiling / 4
        assert ceiling * 3 / 4 < max(delays) <= ceiling


def test_a_failure_that_names_its_delay_is_obeyed() -> None:
    backoff = Backoff(base_s=0.001)
    assert failure_of(RetryLater(7, "x"), "a").delay_s(backoff, 1) == 7
    assert failure_of(Unavailable("x", retry_after_s=9), "a").delay_s(backoff, 1) == 9


def test_what_is_stored_is_what_postgresql_takes() -> None:
    assert storable({"a": "\x00", "b": "\ud800", "c": "\\u0000", "d": (1, 2)}) == {
        "a": "\ufffd",
        "b": "?",
        "c": "\\ufffd",
        "d": [1, 2],
    }
    assert readable("x" * 600 + "\x00") == "x" * 500
    for wrong in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            storable(wrong)


def test_what_needs_an_operator_is_counted_from_0_on_so_that_the_first_one_is_an_increase() -> None:
    metrics = Metrics("vms")
    nowhere: Any = SimpleNamespace(database=SimpleNamespace(standalone=None))
    OperationRunner(service="vms", uow=nowhere, notifications=nowhere, sagas=[Saga("create_vm", [])], metrics=metrics)
    labels = {"service": "vms", "kind": "create_vm", "state": "needs_operator"}
    assert metrics.registry.get_sample_value("telar_operations_total", labels) == 0
