"""A service in miniature for the tests of operations: runners on one database, and a cloud that remembers its tasks."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import text

from libs.common.db import Database, Notifications
from libs.common.errors import Conflict
from libs.common.operations import (
    CHANNEL,
    Backoff,
    Operation,
    OperationRunner,
    Operations,
    Saga,
    Step,
    StepContext,
    enqueue,
)
from libs.common.telemetry import Metrics
from libs.common.uow import UnitOfWorkFactory

QUICK = Backoff(base_s=0.01, cap_s=0.05)
STEPS = ("reserve", "place", "clone", "configure", "start")
STAGES = ("begun", "intended", "called", "saved", "ending")
Log = list[str]
Eventually = Callable[..., Awaitable[None]]
MakeDatabase = Callable[..., Awaitable[Database]]
Hook = Callable[[StepContext, str, str], None]


class Lab:
    """Makes runners and operations on a database, and closes the runners at the end."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.uow = UnitOfWorkFactory(database, source="/telar/lab")
        self.notifications = Notifications(database, (CHANNEL,))
        self.metrics = Metrics("lab")
        self.runners: list[OperationRunner] = []

    async def start(self) -> None:
        await self.notifications.start()
        await self.sql("DELETE FROM operations")

    async def close(self) -> None:
        for runner in self.runners:
            await runner.close()
        await self.notifications.close()

    async def runner(self, *sagas: Saga, **given: Any) -> OperationRunner:
        options: dict[str, Any] = {"backoff": QUICK, "grace_s": 0.2, "poll_s": 0.2} | given
        uow = UnitOfWorkFactory(options.pop("database", self.database), source="/telar/lab")
        runner = OperationRunner(
            service="lab", uow=uow, notifications=self.notifications, sagas=sagas, metrics=self.metrics, **options
        )
        self.runners.append(runner)
        await runner.start()
        return runner

    def operations(self, *sagas: Saga) -> Operations:
        return Operations(self.uow, sagas)

    async def enqueue(self, kind: str, *, resource: str | None = None, owner: str = "ada", **given: Any) -> str:
        async with self.uow() as uow:
            operation = await enqueue(
                uow,
                kind=kind,
                resource_type="vm",
                resource_id=resource or uuid4().hex,
                owner_id=owner,
                input=given,
            )
            await uow.commit()
        return operation.id

    async def get(self, operation_id: str) -> Operation:
        return await self.operations().get(operation_id)

    async def ended(self, operation_id: str) -> bool:
        return (await self.get(operation_id)).state.is_final

    async def sql(self, statement: str, **values: Any) -> Sequence[Any]:
        return await sql(self.database, statement, **values)


async def sql(database: Database, statement: str, **values: Any) -> Sequence[Any]:
    """Run one statement and commit; gives its rows."""
    async with database.engine.begin() as connection:
        result = await connection.execute(text(statement), values)
        return result.all() if result.returns_rows else ()


def step(log: Log, name: str, run: Callable[[StepContext], Awaitable[Any]] | None = None, **options: Any) -> Step:
    """A step that notes its run and its undo, and does `run` in between."""

    async def noted(context: StepContext) -> Any:
        log.append(name)
        return await run(context) if run is not None else {"made": name}

    async def undo(_context: StepContext) -> None:
        log.append(f"undo {name}")

    return Step(name, noted, options.pop("undo", undo), **options)


async def refuse(_context: StepContext) -> None:
    raise Conflict("The name is taken")


async def run_to_end(lab: Lab, saga: Saga, eventually: Any, **given: Any) -> Operation:
    operation_id = await lab.enqueue(saga.kind, **given)
    await lab.runner(saga)
    await eventually(lambda: lab.ended(operation_id))
    return await lab.get(operation_id)


class Cloud:
    """The far end: tasks that it carries out once per call, each with an id of its own, in a table that outlives us."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self) -> None:
        await sql(
            self._database,
            "CREATE TABLE IF NOT EXISTS cloud_tasks (upid bigint GENERATED ALWAYS AS IDENTITY, token text,"
            " operation text, step text, undone int DEFAULT 0)",
        )
        await sql(
            self._database,
            "CREATE TABLE IF NOT EXISTS cloud_calls (at timestamptz DEFAULT clock_timestamp(), operation text,"
            " step text, phase text)",
        )

    async def note(self, operation: str, step: str, phase: str) -> None:
        """Remember that a step was entered."""
        await sql(
            self._database,
            "INSERT INTO cloud_calls (operation, step, phase) VALUES (:operation, :step, :phase)",
            operation=operation,
            step=step,
            phase=phase,
        )

    async def start(self, operation: str, step: str, token: str) -> int:
        rows = await sql(
            self._database,
            "INSERT INTO cloud_tasks (token, operation, step) VALUES (:token, :operation, :step) RETURNING upid",
            token=token,
            operation=operation,
            step=step,
        )
        return int(rows[0].upid)

    async def find(self, token: str) -> int | None:
        rows = await sql(self._database, "SELECT upid FROM cloud_tasks WHERE token = :token", token=token)
        return int(rows[0].upid) if rows else None

    async def undo(self, token: str) -> None:
        await sql(self._database, "UPDATE cloud_tasks SET undone = 1 WHERE token = :token", token=token)


def cloud_step(cloud: Cloud, name: str, hook: Hook) -> Step:
    """A step in the way adapters do it: intent, call, task id; `hook` is told of every stage."""

    async def run(context: StepContext) -> dict[str, Any]:
        await cloud.note(context.operation_id, name, "run")
        hook(context, name, "begun")
        token = context.checkpoint.get("token")
        if token is None:
            token = uuid4().hex
            await context.save(token=token)
            upid = None
        else:
            upid = context.checkpoint.get("upid") or await cloud.find(token)
        hook(context, name, "intended")
        if upid is None:
            upid = await cloud.start(context.operation_id, name, token)
        hook(context, name, "called")
        await context.save(upid=upid)
        hook(context, name, "saved")
        await context.progress(0.5, f"{name} half way")
        hook(context, name, "ending")
        return {"upid": upid, "after": sorted(context.results)}

    async def undo(context: StepContext) -> None:
        await cloud.note(context.operation_id, name, "undo")
        hook(context, name, "undoing")
        if "token" in context.checkpoint:
            await cloud.undo(context.checkpoint["token"])
        hook(context, name, "undone")

    return Step(name, run, undo)


def nothing(_context: StepContext, _step: str, _stage: str) -> None:
    """A hook that lets all pass."""


def now_s() -> float:
    return time.monotonic()
