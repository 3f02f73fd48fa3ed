"""What a stack holds of each quota, instead of whether it holds its place."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("stacks", sa.Column("reserved", JSONB(), nullable=False, server_default="{}"))
    op.execute("""UPDATE stacks SET reserved = '{"stacks": 1}' WHERE holds_quota""")
    op.drop_column("stacks", "holds_quota")
