"""Templates made of images, nodes under maintenance, and what a machine is given for its first start."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "templates",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("os_type", sa.String(), nullable=False),
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("offered", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.Column("image_id", sa.Uuid()),
        sa.Column("private", sa.Boolean(), nullable=False),
        sa.Column("format", sa.String()),
        sa.Column("sha256", sa.String()),
        sa.Column("cores", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("disk_gib", sa.Integer(), nullable=False),
        sa.Column("copies", JSONB(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("templates_created", "templates", ["created_at", "id"])
    op.create_index("templates_image", "templates", ["image_id"])
    op.create_table(
        "seen_images",
        sa.Column("image_id", sa.Uuid(), primary_key=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "node_maintenance",
        sa.Column("cluster", sa.String(), primary_key=True),
        sa.Column("node", sa.String(), primary_key=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
    )
    for column in (
        sa.Column("image_id", sa.Uuid()),
        sa.Column("template_id", sa.Uuid()),
        sa.Column("ha", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("network", JSONB()),
        sa.Column("seed_volume", sa.String()),
        sa.Column("seed_node", sa.String()),
        sa.Column("sealed_user_data", sa.String()),
    ):
        op.add_column("vms", column)
    op.create_index("ix_vms_template_id", "vms", ["template_id"])
