"""An index of the parts of machines' names, so that a rare one is found without reading them all."""

import sqlalchemy as sa
from alembic import op

from libs.common.names import NAME_GRAMS

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(NAME_GRAMS)
    op.create_index(
        "vms_name_grams",
        "vms",
        [sa.text("name_grams(name, 1, 3)")],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )
