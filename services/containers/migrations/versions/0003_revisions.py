"""Revisions of stacks, and the sealed credentials of their repositories."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("stacks", sa.Column("latest_revision", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "stack_revisions",
        sa.Column("stack_id", sa.Uuid(), sa.ForeignKey("stacks.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("of_revision", sa.Integer()),
        sa.Column("service_types", ARRAY(sa.Text()), nullable=False),
        sa.Column("primary_app_type", sa.String()),
        sa.Column("variables", JSONB(), nullable=False),
        sa.Column("limits", JSONB(), nullable=False),
        sa.Column("services", JSONB(), nullable=False),
        sa.Column("reserved", JSONB(), nullable=False),
        sa.Column("file_manager", sa.Boolean(), nullable=False),
        sa.Column("own_compose", sa.Text()),
        sa.Column("source", JSONB(), nullable=False),
        sa.Column("git_credentials", sa.Text()),
        sa.Column("source_digest", sa.String()),
        sa.Column("archive", sa.String()),
        sa.Column("copy_number", sa.Integer(), nullable=False),
        sa.Column("images", JSONB(), nullable=False),
        sa.Column("compose", sa.Text()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    # What runs already becomes each stack's first revision; its code lies where it was, in the working copy 0.
    op.execute("""
        INSERT INTO stack_revisions (stack_id, number, state, cause, service_types, primary_app_type, variables, limits,
            services, reserved, file_manager, source, copy_number, images, compose, created_at)
        SELECT id, 1, CASE WHEN state = 'creating' THEN 'pending' WHEN state = 'failed' THEN 'failed' ELSE 'active' END,
            'create', service_types, primary_app_type, variables, limits, services,
            reserved, services @> '[{"template": "filemanager"}]', '{"kind": "unknown"}', 0, '{}', compose, created_at
        FROM stacks
    """)
    op.execute("UPDATE stacks SET latest_revision = 1")
