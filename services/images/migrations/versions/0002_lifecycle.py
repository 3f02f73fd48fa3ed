"""Images before they are active, resumable uploads, members, users of images, provenance, rotten blobs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.names import NAME_GRAMS

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _widen_images()
    _widen_blobs_and_uploads()
    _make_members_and_uses()


def _widen_images() -> None:
    op.alter_column("images", "sha256", nullable=True)
    op.alter_column("images", "sha512", nullable=True)
    op.add_column("images", sa.Column("min_disk_gib", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("images", sa.Column("min_memory_mib", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("images", sa.Column("derived_from", sa.Uuid()))
    op.add_column("images", sa.Column("provenance", JSONB(), nullable=False, server_default="{}"))
    op.create_index("ix_images_derived_from", "images", ["derived_from"])
    for name in ("images_created", "images_owner_created", "images_public_created"):
        op.drop_index(name, "images")
    for order in ("created_at", "updated_at", "name", "size_bytes", "downloads"):
        op.create_index(f"images_owner_{order}", "images", ["owner_id", order, "id"])
        op.create_index(f"images_visibility_{order}", "images", ["visibility", order, "id"])
    op.create_index("images_os_type", "images", [sa.text("lower(os_type)"), "name", "id"])
    for column in ("architecture", "format", "status"):
        op.create_index(f"images_{column}", "images", [column])
    op.execute(NAME_GRAMS)
    op.create_index(
        "images_name_grams",
        "images",
        [sa.text("name_grams(name, 1, 3)")],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )


def _widen_blobs_and_uploads() -> None:
    op.add_column(
        "blobs", sa.Column("verified_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())
    )
    op.add_column("blobs", sa.Column("rotten_at", sa.DateTime(timezone=True)))
    op.create_index("blobs_verified", "blobs", ["verified_at", "sha256"])
    op.add_column("uploads", sa.Column("kind", sa.String(), nullable=False, server_default="multipart"))
    op.add_column("uploads", sa.Column("length_bytes", sa.BigInteger()))
    op.add_column("uploads", sa.Column("offset_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("uploads", sa.Column("writer", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("uploads", sa.Column("expected_sha256", sa.String()))
    op.add_column("uploads", sa.Column("metadata_header", sa.String(), nullable=False, server_default=""))
    for table, column in (
        ("images", "min_disk_gib"),
        ("images", "min_memory_mib"),
        ("images", "provenance"),
        ("blobs", "verified_at"),
        ("uploads", "kind"),
        ("uploads", "offset_bytes"),
        ("uploads", "writer"),
        ("uploads", "metadata_header"),
    ):
        op.alter_column(table, column, server_default=None)


def _make_members_and_uses() -> None:
    op.create_table(
        "image_members",
        sa.Column("image_id", sa.Uuid(), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("user_id", sa.String(), primary_key=True),
    )
    op.create_index("image_members_user", "image_members", ["user_id", "image_id"])
    op.create_table(
        "image_uses",
        sa.Column("kind", sa.String(), primary_key=True),
        sa.Column("resource_id", sa.String(), primary_key=True),
        sa.Column("image_id", sa.Uuid()),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String()),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_image_uses_image_id", "image_uses", ["image_id"])
