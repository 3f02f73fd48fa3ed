"""The operations table of a service's database, and how its changes are announced."""

from sqlalchemy import Boolean, Column, DateTime, Double, Index, Integer, Select, Table, Text, func, select, text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db import COMMON_METADATA

CHANNEL = "telar_operations"
"""Payloads: empty, something can be claimed; an id, that operation has changed; `cancel <id>`, it shall turn back."""
CANCEL = "cancel "

_EMPTY_OBJECT = text("'{}'::jsonb")
_UNFINISHED = text("state IN ('pending', 'running')")

operations_table = Table(
    "operations",
    COMMON_METADATA,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("resource_type", Text, nullable=False),
    Column("resource_id", Text, nullable=False),
    Column("owner_id", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="pending"),
    Column("direction", Text, nullable=False, server_default="forward"),
    Column("step", Text),
    Column("progress", Double, nullable=False, server_default="0"),
    Column("message", Text, nullable=False, server_default=""),
    Column("error", JSONB(none_as_null=True)),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("input", JSONB, nullable=False, server_default=_EMPTY_OBJECT),
    Column("memo", JSONB, nullable=False, server_default=_EMPTY_OBJECT),
    Column("steps", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    Column("back_to", Text),
    Column("lease_holder", Text),
    Column("lease_until", DateTime(timezone=True)),
    Column("run_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    Column("traceparent", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("finished_at", DateTime(timezone=True)),
    Index("operations_claimable", "run_at", postgresql_where=_UNFINISHED),
    Index("operations_unfinished_by_resource", "resource_type", "resource_id", postgresql_where=_UNFINISHED),
    Index(
        "operations_one_running_per_resource",
        "resource_type",
        "resource_id",
        unique=True,
        postgresql_where=text("state = 'running'"),
    ),
    Index("operations_by_owner", "owner_id", "id"),
    Index("operations_by_resource", "resource_type", "resource_id", "id"),
    Index("operations_finished", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
)


def announce(payload: str) -> Select[tuple[None]]:
    """The statement that wakes runners and streams when its transaction commits."""
    return select(func.pg_notify(CHANNEL, payload))
