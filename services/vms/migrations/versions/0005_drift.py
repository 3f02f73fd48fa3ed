"""What differs between clusters and records, and the addresses at which machines were last seen."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "drift",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("vmid", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("vm_id", sa.Uuid()),
        sa.Column("node", sa.String()),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("differences", JSONB(), nullable=False),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True)),
    )
    op.create_index("drift_machine", "drift", ["cluster", "vmid"], unique=True)
    op.add_column("vms", sa.Column("addresses", JSONB(), nullable=False, server_default="[]"))
    op.add_column("vms", sa.Column("addresses_at", sa.DateTime(timezone=True)))
    op.create_index("vms_addresses_at", "vms", ["cluster", "addresses_at"], postgresql_where=sa.text("state = 'running'"))
