"""The first schema: stacks, the host ports they hold, and the shared tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from libs.common.migrations import create_common_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_common_tables()
    op.create_table(
        "stacks",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("number", sa.Integer(), sa.Identity(always=True), nullable=False, unique=True),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False, unique=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.Column("service_types", ARRAY(sa.Text()), nullable=False),
        sa.Column("primary_app_type", sa.String(), nullable=False),
        sa.Column("variables", JSONB(), nullable=False),
        sa.Column("limits", JSONB(), nullable=False),
        sa.Column("services", JSONB(), nullable=False),
        sa.Column("compose", sa.Text()),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("holds_quota", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("stacks_created", "stacks", ["created_at", "id"])
    op.create_index("stacks_owner_created", "stacks", ["owner_id", "created_at", "id"])
    op.create_index(
        "stacks_owner_name",
        "stacks",
        ["owner_id", sa.text("lower(name)")],
        unique=True,
        postgresql_where=sa.text("state <> 'failed'"),
    )
    op.create_table(
        "host_ports",
        sa.Column("port", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("stack_id", sa.Uuid(), sa.ForeignKey("stacks.id", ondelete="CASCADE"), nullable=False),
    )
    op.create_index("ix_host_ports_stack_id", "host_ports", ["stack_id"])
