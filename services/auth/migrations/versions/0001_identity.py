"""Users, sessions, keys, failures, revocations, audit, and what users own."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from libs.common.migrations import create_common_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _moment(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _name(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=nullable)


def upgrade() -> None:
    create_common_tables()
    _make_users()
    _make_credentials()
    _make_refusals()
    _make_audit()
    _make_read_models()


def _make_users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _name("email"),
        _name("email_key"),
        _name("username"),
        _name("username_key"),
        _name("external_id", nullable=True),
        _name("password_hash", nullable=True),
        _name("role"),
        sa.Column("is_superuser", sa.Boolean(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("quota", JSONB(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        _moment("created_at"),
        _moment("updated_at"),
        sa.UniqueConstraint("email_key"),
        sa.UniqueConstraint("username_key"),
        sa.UniqueConstraint("external_id"),
    )


def _make_credentials() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
        _name("address"),
        _name("user_agent"),
        _moment("created_at"),
        _moment("last_used_at"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False, index=True),
        _moment("revoked_at", nullable=True),
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("digest", sa.String(), primary_key=True),
        sa.Column(
            "session_id", sa.Uuid(), sa.ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        _moment("issued_at"),
        _moment("used_at", nullable=True),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
        _name("name"),
        _name("prefix"),
        _name("digest"),
        sa.Column("scopes", ARRAY(sa.Text()), nullable=False),
        sa.Column("cidrs", ARRAY(sa.Text()), nullable=False),
        _moment("created_at"),
        _moment("expires_at", nullable=True),
        _moment("last_used_at", nullable=True),
        sa.UniqueConstraint("digest"),
    )


def _make_refusals() -> None:
    op.create_table(
        "login_failures",
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("window_ends_at", sa.DateTime(timezone=True), nullable=False, index=True),
        _moment("locked_until", nullable=True),
    )
    op.create_table(
        "revocations",
        sa.Column("scope", sa.String(), primary_key=True),
        sa.Column("subject_id", sa.String(), primary_key=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=False, index=True),
    )


def _make_audit() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        _moment("at"),
        _name("actor_id", nullable=True),
        _name("actor"),
        sa.Column("action", sa.String(), nullable=False, index=True),
        _name("target"),
        _name("address"),
        sa.Column("detail", JSONB(), nullable=False),
        _name("hash"),
    )
    op.create_index("audit_entries_actor", "audit_entries", ["actor_id", "number"])


def _make_read_models() -> None:
    op.create_table(
        "owned_resources",
        sa.Column("service", sa.String(), primary_key=True),
        sa.Column("type", sa.String(), primary_key=True),
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("owner_id", sa.String(), nullable=False, index=True),
        _name("name"),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "service_usage",
        sa.Column("owner_id", sa.String(), primary_key=True),
        sa.Column("service", sa.String(), primary_key=True),
        sa.Column("used", JSONB(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
    )
