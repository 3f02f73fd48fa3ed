"""An index for each order of the list of stacks, so that its last page takes no longer than its first."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("stacks_created", "stacks_owner_created"):
        op.drop_index(name, "stacks")
    op.execute("ALTER INDEX stacks_owner_name RENAME TO stacks_owner_name_once")
    for order in ("created_at", "updated_at", "name"):
        op.create_index(f"stacks_{order}", "stacks", [order, "id"])
        op.create_index(f"stacks_owner_{order}", "stacks", ["owner_id", order, "id"])
    op.create_index("stacks_state", "stacks", ["state"])
