"""The first schema: virtual machines, the VMIDs leased to them, and the shared tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.migrations import create_common_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_common_tables()
    # Gives each request another VMID to try first, without waiting for those that others hold uncommitted.
    op.execute("CREATE SEQUENCE vmid_turns MINVALUE 0 MAXVALUE 999999999 START 0 CYCLE")
    op.create_table(
        "vms",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False, unique=True),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("os_type", sa.String(), nullable=False),
        sa.Column("template", sa.String(), nullable=False),
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("node", sa.String()),
        sa.Column("vmid", sa.Integer()),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.Column("cores", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("disk_gib", sa.Integer(), nullable=False),
        sa.Column("restart_needed", sa.Boolean(), nullable=False),
        sa.Column("reserved", JSONB(), nullable=False),
        sa.Column("guest_user", sa.String()),
        sa.Column("ssh_public_key", sa.String()),
        sa.Column("sealed_password", sa.String()),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("vms_created", "vms", ["created_at", "id"])
    op.create_index("vms_owner_created", "vms", ["owner_id", "created_at", "id"])
    op.create_index("vms_cluster_node", "vms", ["cluster", "node"])
    op.create_index("vms_vmid", "vms", ["vmid"])
    op.create_table(
        "vmid_leases",
        sa.Column("cluster", sa.String(), primary_key=True),
        sa.Column("vmid", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("vm_id", sa.Uuid(), nullable=False),
        sa.Column("node", sa.String()),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("vmid_leases_vm", "vmid_leases", ["vm_id"])
