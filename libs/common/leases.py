"""Scheduled jobs that run on one replica at a time: a named lease with a due time, an expiry and a heartbeat."""

import asyncio
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from sqlalchemy import Column, DateTime, Table, Text, func, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from libs.common.db import COMMON_METADATA, Database, as_database_error, database_errors
from libs.common.errors import Kind, TelarError
from libs.common.tasks import cancel

Job = Callable[[], Awaitable[None]]
"""Must be idempotent: a replica that dies in the middle leaves it to another, which begins it anew."""
RETRY_S = 1.0

leases_table = Table(
    "leases",
    COMMON_METADATA,
    Column("name", Text, primary_key=True),
    Column("holder", Text),
    Column("held_until", DateTime(timezone=True)),
    Column("due_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

_l = leases_table.c
_log = structlog.get_logger()


def _tell(failure: BaseException) -> None:
    """Note how a job failed: a database or a far end that is away is no surprise and has no traceback."""
    known = failure if isinstance(failure, TelarError) else as_database_error(failure)
    if known is not None and known.kind is not Kind.INTERNAL:
        _log.warning("job_failed", error=known.slug, detail=known.detail)
    else:
        _log.error("job_failed", error=type(failure).__name__, exc_info=failure)


def _seconds(count: float) -> Any:
    return func.make_interval(0, 0, 0, 0, 0, 0, count)


class Leases:
    """One service's named leases. A holder that dies loses its lease after `lease_s`."""

    def __init__(self, database: Database, *, lease_s: float = 15.0) -> None:
        self._engine = database.standalone
        self._lease_s = lease_s
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, every_s: float, job: Job) -> None:
        """Run a job exclusively in the background until `close`."""
        self._tasks.append(asyncio.create_task(self.run_exclusively(name, every_s, job), name=f"lease {name}"))

    async def close(self) -> None:
        """Break off the jobs under way and let go of their leases, so that another replica begins them at once."""
        await cancel(*self._tasks)
        self._tasks.clear()

    async def run_exclusively(self, name: str, every_s: float, job: Job) -> None:
        """Run `job` on one replica of all, `every_s` after its last end, until cancelled.

        A failure is logged and the job tried again when it is next due; a job whose lease is lost is cancelled.
        """
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(6)}"
        while True:
            try:
                wait_s = await self._claim(name, holder)
                if wait_s is None:
                    with structlog.contextvars.bound_contextvars(job=name):
                        await self._run(name, holder, every_s, job)
                    continue
            except TelarError as error:
                _log.warning("lease_not_claimed", lease=name, error=error.slug)
                wait_s = RETRY_S
            await asyncio.sleep(min(wait_s, every_s))

    async def _run(self, name: str, holder: str, every_s: float, job: Job) -> None:
        working = asyncio.ensure_future(job())
        keeping = asyncio.create_task(self._keep(name, holder))
        ended = False
        try:
            await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
            ended = working.done()
        finally:
            await cancel(working, keeping)
            await self._let_go(name, holder, every_s if ended else 0.0)
        if not ended:
            _log.warning("lease_lost", lease=name)
            return
        failure = working.exception() if not working.cancelled() else asyncio.CancelledError()
        if failure is not None:
            _tell(failure)

    async def _keep(self, name: str, holder: str) -> None:
        """Renew the lease; return when it is lost, or may be because the database is away for as long as it lasts."""
        loop = asyncio.get_running_loop()
        held_until = loop.time() + self._lease_s
        while loop.time() < held_until:
            await asyncio.sleep(self._lease_s / 3)
            asked_at = loop.time()
            try:
                async with asyncio.timeout(self._lease_s / 3):
                    if not await self._renew(name, holder):
                        return
            except (TelarError, TimeoutError) as error:
                _log.warning("lease_not_renewed", lease=name, error=type(error).__name__)
            else:
                held_until = asked_at + self._lease_s

    async def _claim(self, name: str, holder: str) -> float | None:
        """Take the lease if it is due and free: None; otherwise the seconds until it may be."""
        until = func.now() + _seconds(self._lease_s)
        taking = insert(leases_table).values(name=name, holder=holder, held_until=until)
        free = or_(_l.held_until.is_(None), _l.held_until < func.now())
        taking = taking.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": holder, "held_until": until},
            where=free & (_l.due_at <= func.now()),
        )
        soonest = func.greatest(_l.due_at, func.coalesce(_l.held_until, _l.due_at))
        waiting = select(func.extract("epoch", soonest - func.now())).where(_l.name == name)
        with database_errors():
            async with self._engine.connect() as connection:
                taken = (await connection.execute(taking.returning(_l.name))).first()
                wait_s = None if taken else (await connection.execute(waiting)).scalar_one_or_none()
        return None if taken else max(0.05, float(wait_s or 0.0))

    async def _renew(self, name: str, holder: str) -> bool:
        renewing = update(leases_table).where(tuple_(_l.name, _l.holder) == (name, holder))
        renewing = renewing.values(held_until=func.now() + _seconds(self._lease_s))
        with database_errors():
            async with self._engine.connect() as connection:
                return (await connection.execute(renewing.returning(_l.name))).first() is not None

    async def _let_go(self, name: str, holder: str, due_in_s: float) -> None:
        freeing = update(leases_table).where(tuple_(_l.name, _l.holder) == (name, holder))
        freeing = freeing.values(holder=None, held_until=None, due_at=func.now() + _seconds(due_in_s))
        try:
            async with asyncio.timeout(2.0), self._engine.connect() as connection:
                await connection.execute(freeing)
        except Exception as error:  # noqa: BLE001 - a lease that cannot be let go runs out by itself
            _log.warning("lease_not_released", lease=name, error=type(error).__name__)
