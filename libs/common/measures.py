"""What a service tells of itself every few seconds: how much waits, how long, and how much room is left."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Select, func, select

from libs.common.db import Database, transaction
from libs.common.inbox import dead_letters_table
from libs.common.operations import operations_table
from libs.common.outbox import SqlOutboxStore
from libs.common.telemetry import Metrics

EVERY_S = 5.0
_UNFINISHED = ("pending", "running")


def _age_s(column: Any) -> Any:
    return func.coalesce(func.extract("epoch", func.now() - column), 0)


def _operations() -> Select[Any]:
    """Unfinished operations by state: how many, the age of the oldest, and since when the first one is due and free."""
    table = operations_table.c
    free_since = func.greatest(table.run_at, func.coalesce(table.lease_until, table.run_at))
    due_and_free = func.min(free_since).filter(free_since < func.now())
    return (
        select(table.state, func.count(), _age_s(func.min(table.created_at)), _age_s(due_and_free))
        .where(table.state.in_(_UNFINISHED))
        .group_by(table.state)
    )


async def measure_database(database: Database, outbox: SqlOutboxStore, metrics: Metrics) -> None:
    """Read the waiting work of a service with a PostgreSQL database."""
    service = metrics.service
    waiting, lag_s = await outbox.lag()
    metrics.outbox_waiting.labels(service).set(waiting)
    metrics.outbox_lag_seconds.labels(service).set(lag_s)
    async with transaction(database) as session:
        operations = (await session.execute(_operations())).all()
        dead = await session.scalar(select(func.count()).select_from(dead_letters_table))
    counts = dict.fromkeys(_UNFINISHED, 0) | {row[0]: row[1] for row in operations}
    for state, count in counts.items():
        metrics.operations_unfinished.labels(service, state).set(count)
    metrics.operations_oldest_seconds.labels(service).set(max((row[2] for row in operations), default=0))
    metrics.operations_overdue_seconds.labels(service).set(max((row[3] for row in operations), default=0))
    metrics.dead_letters_kept.labels(service).set(dead or 0)
    used, allowed = database.pool_status()
    metrics.database_connections.labels(service).set(used)
    metrics.database_connections_allowed.labels(service).set(allowed)


def measure_disks(folders: Mapping[str, Path], metrics: Metrics) -> None:
    """Read how full the disks are, each folder under a name; one that is not there is left out."""
    for name, folder in folders.items():
        try:
            found = shutil.disk_usage(folder)
        except OSError:
            continue
        metrics.disk_free_bytes.labels(metrics.service, name).set(found.free)
        metrics.disk_size_bytes.labels(metrics.service, name).set(found.total)
