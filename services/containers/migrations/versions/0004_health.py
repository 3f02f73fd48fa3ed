"""The health of stacks as the engine said it last."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("stacks", sa.Column("health", sa.String(), nullable=False, server_default="unknown"))
