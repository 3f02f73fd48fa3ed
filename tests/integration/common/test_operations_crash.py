"""Runners killed with SIGKILL at every point of a saga, and what another runner makes of it."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

from libs.common.db import Database
from libs.common.operations import State, StepState
from tests.integration.common.operations_lab import STAGES, STEPS, Cloud, Eventually, Lab, nothing
from tests.integration.common.operations_worker import crashing_saga

ROOT = Path(__file__).parents[3]
RUN_POINTS = {f"run-{step}-{stage}": (step, stage) for step in STEPS for stage in STAGES}
UNDO_POINTS = {f"undo-{step}-{stage}": (step, stage) for step in STEPS for stage in ("undoing", "undone")}


async def _kill_at(url: str, points: dict[str, tuple[str, str]]) -> dict[str, int]:
    """Let one process per point run into its death; gives the signal that ended each."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("operations_worker.py")),
        url,
        *(f"{kind}@{step}@{stage}" for kind, (step, stage) in points.items()),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    answer, _ = await asyncio.wait_for(worker.communicate(), 60)
    print(answer.decode())  # noqa: T201 - pytest shows it if the test fails
    # Processes share that output, so that a line may begin within another's.
    return {kind: int(ended_by) for kind, ended_by in re.findall(r"ENDED (\S+) (\d+)", answer.decode())}


async def _let_leases_run_out(lab: Lab) -> None:
    """What time does by itself: on a busy machine short leases would run out under living runners, too."""
    await lab.sql("UPDATE operations SET lease_until = now() - interval '1 second' WHERE lease_until IS NOT NULL")


async def test_an_operation_killed_at_any_point_resumes_at_its_last_stored_step(
    lab: Lab, database: Database, database_url: str, eventually: Eventually
) -> None:
    cloud = Cloud(database)
    await cloud.create()
    ids = {kind: await lab.enqueue(kind) for kind in RUN_POINTS}
    killed = await _kill_at(database_url, RUN_POINTS)
    assert killed == dict.fromkeys(RUN_POINTS, signal.SIGKILL)
    await _let_leases_run_out(lab)

    await lab.runner(*(crashing_saga(cloud, kind, nothing) for kind in RUN_POINTS))
    for kind, (crashed_step, _) in RUN_POINTS.items():
        await eventually(lambda kind=kind: lab.ended(ids[kind]), 30)
        operation = await lab.get(ids[kind])
        assert (operation.state, operation.progress, operation.attempts) == (State.SUCCEEDED, 1.0, 2), kind
        assert [record.state for record in operation.steps] == [StepState.DONE] * 5
        for place, record in enumerate(operation.steps):
            assert record.result is not None
            assert record.result["after"] == sorted(STEPS[:place])
        calls = await lab.sql("SELECT step FROM cloud_calls WHERE operation = :id ORDER BY at", id=ids[kind])
        entered = [row.step for row in calls]
        assert entered == sorted([*STEPS, crashed_step], key=STEPS.index), kind
        tasks = await lab.sql("SELECT step FROM cloud_tasks WHERE operation = :id ORDER BY upid", id=ids[kind])
        assert [row.step for row in tasks] == list(STEPS), f"{kind}: the cloud did something twice or never"


async def test_an_undoing_killed_at_any_point_is_carried_to_its_end(
    lab: Lab, database: Database, database_url: str, eventually: Eventually
) -> None:
    cloud = Cloud(database)
    await cloud.create()
    ids = {kind: await lab.enqueue(kind) for kind in UNDO_POINTS}
    killed = await _kill_at(database_url, UNDO_POINTS)
    assert killed == dict.fromkeys(UNDO_POINTS, signal.SIGKILL)
    await _let_leases_run_out(lab)

    await lab.runner(*(crashing_saga(cloud, kind, nothing) for kind in UNDO_POINTS))
    for kind, operation_id in ids.items():
        await eventually(lambda operation_id=operation_id: lab.ended(operation_id), 30)
        operation = await lab.get(operation_id)
        assert operation.state is State.FAILED, kind
        assert operation.error is not None
        assert operation.error["detail"] == "The last step refuses"
        tasks = await lab.sql("SELECT undone FROM cloud_tasks WHERE operation = :id", id=operation_id)
        assert [row.undone for row in tasks] == [1] * 5, kind
