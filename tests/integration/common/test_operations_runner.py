"""Runners on a real database: parallel work, one per resource, shared work, lost leases, clean closing."""

import asyncio
from collections import Counter
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from sqlalchemy.exc import OperationalError

from libs.common.db import Database, DatabaseUnavailable, Notifications
from libs.common.operations import CHANNEL, Operation, Saga, State, Step, StepContext, attempt, execution
from libs.common.operations.store import OperationStore
from tests.integration.common.operations_lab import Eventually, Lab, MakeDatabase, now_s


class Gate:
    """A step that waits until it is let through; counts how many are inside."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.inside: Counter[str] = Counter()
        self.entered: list[str] = []
        self.most_inside = 0

    async def run(self, context: StepContext) -> None:
        key = context.operation.resource_id
        self.inside[key] += 1
        self.entered.append(context.operation_id)
        self.most_inside = max(self.most_inside, *self.inside.values())
        try:
            await self.open.wait()
        finally:
            self.inside[key] -= 1


async def all_ended(lab: Lab) -> bool:
    rows = await lab.sql("SELECT count(*) AS left FROM operations WHERE state IN ('pending', 'running')")
    return bool(rows[0].left == 0)


async def test_two_hundred_operations_run_at_once_on_ten_connections(lab: Lab, eventually: Eventually) -> None:
    gate = Gate()

    async def work(context: StepContext) -> dict[str, Any]:
        await context.save(seen=True)
        return {"n": context.input["n"]}

    steps = [Step("first", work), Step("gate", gate.run), Step("last", work)]
    ids = [await lab.enqueue("many", n=number) for number in range(200)]
    await lab.runner(Saga("many", steps), concurrency=200)
    await eventually(lambda: len(gate.entered) == 200)
    assert lab.database.pool_status() == (0, 10), "no connection is held while steps run"
    gate.open.set()
    await eventually(lambda: all_ended(lab), 30)
    assert [(await lab.get(one)).state for one in ids] == [State.SUCCEEDED] * 200
    assert Counter(gate.entered) == Counter(ids)
    ended = lab.metrics.operations.labels("lab", "many", State.SUCCEEDED)
    assert ended._value.get() == 200


async def test_no_more_operations_run_than_the_concurrency_allows(lab: Lab, eventually: Eventually) -> None:
    gate = Gate()
    for _ in range(5):
        await lab.enqueue("few")
    await lab.runner(Saga("few", [Step("gate", gate.run)]), concurrency=2, poll_s=0.02)
    await eventually(lambda: len(gate.entered) == 2)
    assert len(await lab.sql("SELECT 1 FROM operations WHERE state = 'pending'")) == 3
    gate.open.set()
    await eventually(lambda: all_ended(lab))


async def test_operations_of_one_resource_run_one_after_another_oldest_first(lab: Lab, eventually: Eventually) -> None:
    gate = Gate()
    saga = Saga("turns", [Step("gate", gate.run)])
    ids = [await lab.enqueue("turns", resource="vm-1") for _ in range(4)]
    other = await lab.enqueue("turns", resource="vm-2")
    await lab.runner(saga)
    await lab.runner(saga)
    await eventually(lambda: len(gate.entered) == 2)
    assert set(gate.entered) == {ids[0], other}
    gate.open.set()
    await eventually(lambda: all_ended(lab))
    assert [one for one in gate.entered if one != other] == ids
    assert gate.most_inside == 1


async def test_two_runners_share_the_work_and_none_is_run_twice(
    lab: Lab, make_database: MakeDatabase, eventually: Eventually
) -> None:
    by: dict[str, Counter[str]] = {"one": Counter(), "two": Counter()}

    def saga(runner: str) -> Saga:
        async def note(context: StepContext) -> None:
            by[runner][context.operation_id] += 1
            await context.save(by=runner)

        return Saga("shared", [Step("note", note)])

    await lab.runner(saga("one"), concurrency=4)
    await lab.runner(saga("two"), concurrency=4, database=await make_database())
    ids = await asyncio.gather(*(lab.enqueue("shared") for _ in range(100)))
    await eventually(lambda: all_ended(lab), 20)
    assert by["one"] + by["two"] == Counter(ids)
    assert min(len(by["one"]), len(by["two"])) > 0


async def test_claims_that_meet_never_take_two_operations_of_one_resource(lab: Lab) -> None:
    for resource in range(10):
        for _ in range(3):
            await lab.enqueue("meet", resource=f"vm-{resource}")
    stores = [OperationStore(lab.uow, lease_s=30) for _ in range(8)]
    claims = await asyncio.gather(*(store.claim(f"r{n}", ["meet"], 5) for n, store in enumerate(stores)))
    taken = Counter(operation.resource_id for claim in claims for operation in claim)
    assert set(taken.values()) == {1}
    assert len(taken) == 10


async def test_a_runner_that_lost_its_lease_stops_and_writes_nothing_more(lab: Lab, eventually: Eventually) -> None:
    entered, broken_off, wrote = asyncio.Event(), asyncio.Event(), []

    async def long(context: StepContext) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            broken_off.set()
            try:
                await context.save(late=True)
                wrote.append("late")
            except BaseException as error:  # noqa: BLE001 - LeaseLost is what this test is about
                wrote.append(type(error).__name__)
            raise

    operation_id = await lab.enqueue("fenced")
    await lab.runner(Saga("fenced", [Step("long", long)]), lease_s=0.6)
    await asyncio.wait_for(entered.wait(), 20)
    await lab.sql(
        "UPDATE operations SET lease_holder = 'another', lease_until = now() + interval '1 hour' WHERE id = :id",
        id=operation_id,
    )
    before = await lab.get(operation_id)
    await asyncio.wait_for(broken_off.wait(), 20)
    await eventually(lambda: not lab.runners[0]._held)
    assert wrote == ["LeaseLost"]
    assert await lab.get(operation_id) == before


async def test_a_step_is_broken_off_when_the_lease_cannot_be_renewed_in_time(
    lab: Lab, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, ended_at = asyncio.Event(), []

    async def long(_context: StepContext) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended_at.append(now_s())

    runner = await lab.runner(Saga("cut", [Step("long", long)]), lease_s=0.6)

    async def away(_held: object) -> dict[str, bool]:
        await asyncio.Event().wait()
        return {}

    monkeypatch.setattr(runner._store, "renew", away)
    await lab.enqueue("cut")
    started = now_s()
    await asyncio.wait_for(entered.wait(), 20)
    await eventually(lambda: ended_at)
    assert ended_at[0] - started < 1.5


async def test_a_lease_is_kept_alive_while_a_step_runs_long(lab: Lab, eventually: Eventually) -> None:
    gate = Gate()
    operation_id = await lab.enqueue("alive")
    saga = Saga("alive", [Step("gate", gate.run)])
    await lab.runner(saga, lease_s=0.3)
    await lab.runner(saga, lease_s=0.3)
    first = await lab.sql("SELECT lease_until FROM operations WHERE id = :id", id=operation_id)

    async def renewed_often() -> bool:
        rows = await lab.sql(
            "SELECT lease_until > CAST(:first AS timestamptz) + interval '1 second' AS yes FROM operations"
            " WHERE id = :id",
            id=operation_id,
            first=first[0].lease_until or (await lab.get(operation_id)).created_at,
        )
        return bool(rows[0].yes)

    await eventually(renewed_often)
    gate.open.set()
    await eventually(lambda: lab.ended(operation_id))
    assert gate.entered == [operation_id]


async def test_closing_lets_a_short_step_end_and_frees_the_lease_at_once(lab: Lab, eventually: Eventually) -> None:
    gate, later = Gate(), Gate()
    steps = [Step("short", gate.run), Step("next", later.run)]
    operation_id = await lab.enqueue("closing")
    runner = await lab.runner(Saga("closing", steps), lease_s=60, grace_s=5)
    await eventually(lambda: gate.entered)
    closing = asyncio.create_task(runner.close())
    await eventually(lambda: all(held.execution.stopping for held in runner._held))
    gate.open.set()
    await closing
    operation = await lab.get(operation_id)
    assert (operation.state, operation.lease_holder) == (State.RUNNING, None)
    assert operation.steps[0].state == "done"
    assert later.entered == []

    later.open.set()
    await lab.runner(Saga("closing", steps), lease_s=60)
    await eventually(lambda: lab.ended(operation_id), 15)
    assert gate.entered == [operation_id], "the step that had ended was not run again"


async def test_closing_breaks_off_a_long_step_at_its_checkpoint_and_another_runner_goes_on(
    lab: Lab, eventually: Eventually
) -> None:
    seen: list[dict[str, Any]] = []

    async def long(context: StepContext) -> None:
        seen.append(dict(context.checkpoint))
        await context.save(upid="UPID:1")
        if len(seen) == 1:
            await asyncio.Event().wait()

    saga = Saga("handover", [Step("long", long)])
    operation_id = await lab.enqueue("handover")
    runner = await lab.runner(saga, lease_s=60, grace_s=0.05)
    await eventually(lambda: seen)
    await runner.close()
    await lab.runner(saga, lease_s=60)
    await eventually(lambda: lab.ended(operation_id), 15)
    assert seen == [{}, {"upid": "UPID:1"}]
    assert (await lab.get(operation_id)).state is State.SUCCEEDED


async def test_a_step_that_reports_progress_is_broken_off_early_when_the_runner_closes(
    lab: Lab, eventually: Eventually
) -> None:
    polls = 0

    async def polling(context: StepContext) -> None:
        nonlocal polls
        while True:
            polls += 1
            await context.progress(0.1)
            await asyncio.sleep(0.01)

    await lab.enqueue("polling")
    runner = await lab.runner(Saga("polling", [Step("poll", polling)]), grace_s=30)
    await eventually(lambda: polls > 2)
    started = now_s()
    await runner.close()
    assert now_s() - started < 5


async def test_a_new_operation_is_begun_long_before_the_next_poll(lab: Lab, eventually: Eventually) -> None:
    await lab.runner(Saga("prompt", [Step("a", Gate().run)]), poll_s=3600)

    async def listening() -> bool:
        return bool(await lab.sql("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"))

    await eventually(listening)
    operation_id = await lab.enqueue("prompt")

    async def begun() -> bool:
        return (await lab.get(operation_id)).state is not State.PENDING

    await eventually(begun, 15)
    assert (await lab.get(operation_id)).state is State.RUNNING


async def test_an_operation_is_found_by_polling_when_no_notification_comes(
    database: Database, eventually: Eventually
) -> None:
    deaf = Lab(database)
    deaf.notifications = Notifications(database, (CHANNEL,))  # never started
    await deaf.sql("DELETE FROM operations")
    operation_id = await deaf.enqueue("polled")
    gate = Gate()
    gate.open.set()
    await deaf.runner(Saga("polled", [Step("a", gate.run)]), poll_s=0.05)
    await deaf.enqueue("polled")
    await eventually(lambda: all_ended(deaf))
    assert operation_id in gate.entered
    await deaf.close()


async def test_operations_of_a_kind_that_a_runner_does_not_know_are_left_alone(
    lab: Lab, eventually: Eventually
) -> None:
    gate = Gate()
    gate.open.set()
    unknown = await lab.enqueue("newer-release")
    known = await lab.enqueue("known")
    await lab.runner(Saga("known", [Step("a", gate.run)]))
    await eventually(lambda: lab.ended(known))
    assert (await lab.get(unknown)).state is State.PENDING


async def test_a_write_waits_for_a_database_that_comes_back(
    lab: Lab, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def save(context: StepContext) -> None:
        await context.save(before=True)

    runner = await lab.runner(Saga("restart", [Step("a", save), Step("b", save)]))
    write = runner._store.write
    outages = [DatabaseUnavailable(), DatabaseUnavailable(), DatabaseUnavailable()]

    async def shaky(operation: Operation) -> bool:
        if outages:
            raise outages.pop()
        return await write(operation)

    monkeypatch.setattr(runner._store, "write", shaky)
    operation_id = await lab.enqueue("restart")
    await eventually(lambda: lab.ended(operation_id))
    operation = await lab.get(operation_id)
    assert (operation.state, operation.attempts, outages) == (State.SUCCEEDED, 1, [])


async def test_operations_go_on_after_the_database_server_dropped_every_connection(
    lab: Lab, eventually: Eventually
) -> None:
    gate = Gate()
    ids = [await lab.enqueue("dropped") for _ in range(20)]
    await lab.runner(Saga("dropped", [Step("a", gate.run), Step("b", gate.run)]), lease_s=3)
    await eventually(lambda: len(gate.entered) == 20)
    await lab.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    gate.open.set()

    async def ended() -> bool:
        try:
            return await all_ended(lab)
        except OperationalError:  # what asks had a connection of that server, too
            return False

    await eventually(ended)
    assert {(await lab.get(one)).state for one in ids} == {State.SUCCEEDED}


async def test_operations_and_steps_are_spans_of_the_trace_that_asked_for_them(
    lab: Lab, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for room in (execution, attempt):
        monkeypatch.setattr(room, "tracer", lambda: provider.get_tracer("lab"))
    with provider.get_tracer("lab").start_as_current_span("POST /vms") as request:
        operation_id = await lab.enqueue("traced")
    await lab.runner(Saga("traced", [Step("a", Gate().run, timeout_s=0.01, max_attempts=1), Step("b", Gate().run)]))
    await eventually(lambda: lab.ended(operation_id))
    await eventually(lambda: len(exporter.get_finished_spans()) == 3)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    trace_id = request.get_span_context().trace_id
    assert {span.context.trace_id for span in spans.values() if span.context} == {trace_id}
    whole, step = spans["operation traced"], spans["step a"]
    assert whole.parent is not None
    assert whole.parent.span_id == request.get_span_context().span_id
    assert step.parent == whole.context
    assert (step.status.status_code, step.status.description) == (StatusCode.ERROR, "StepTimedOut")
    assert (await lab.get(operation_id)).error["trace_id"] == f"{trace_id:032x}"  # type: ignore[index] # it failed


async def test_every_log_line_of_a_step_names_its_operation(lab: Lab, eventually: Eventually) -> None:
    bound: list[dict[str, Any]] = []

    async def look(_context: StepContext) -> None:
        bound.append(structlog.contextvars.get_contextvars())

    ids = [await lab.enqueue("logged") for _ in range(3)]
    await lab.runner(Saga("logged", [Step("look", look)]))
    await eventually(lambda: all_ended(lab))
    expected = [{"operation_id": one, "kind": "logged", "step": "look"} for one in ids]
    assert sorted(bound, key=lambda names: names["operation_id"]) == expected
