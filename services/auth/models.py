"""Tables of the auth service."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import BigInteger, Column, DateTime, Index, MetaData, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

METADATA = MetaData()


class Base(SQLModel, registry=registry(metadata=METADATA)):
    """Keeps this service's tables apart from those of others in the same process."""

    metadata: ClassVar[MetaData] = METADATA


def moment(*, nullable: bool = False, index: bool = False) -> Any:
    """A timezone-aware column; a fresh Column object for each use."""
    return Field(
        default=None if nullable else ..., sa_column=Column(DateTime(timezone=True), nullable=nullable, index=index)
    )


def document(**options: Any) -> Any:
    return Field(sa_column=Column(JSONB, nullable=False, **options))


class User(Base, table=True):
    __tablename__ = "users"

    id: UUID = Field(primary_key=True)
    email: str
    email_key: str = Field(unique=True)
    username: str
    username_key: str = Field(unique=True)
    external_id: str | None = Field(default=None, unique=True)
    """The `userid` of older clients."""
    password_hash: str | None = None
    """None: nobody can log in with a password (accounts that older clients make by `userid`)."""
    role: str
    is_superuser: bool = False
    disabled: bool = False
    quota: dict[str, int] = document()
    version: int = 1
    created_at: datetime = moment()
    updated_at: datetime = moment()


class Session(Base, table=True):
    __tablename__ = "sessions"

    id: UUID = Field(primary_key=True)
    user_id: UUID = Field(foreign_key="users.id", ondelete="CASCADE", index=True)
    address: str
    user_agent: str
    created_at: datetime = moment()
    last_used_at: datetime = moment()
    expires_at: datetime = moment(index=True)
    revoked_at: datetime | None = moment(nullable=True)


class RefreshToken(Base, table=True):
    """One link of a session's chain of refresh tokens; using one twice revokes the session."""

    __tablename__ = "refresh_tokens"

    digest: str = Field(primary_key=True)
    session_id: UUID = Field(foreign_key="sessions.id", ondelete="CASCADE", index=True)
    issued_at: datetime = moment()
    used_at: datetime | None = moment(nullable=True)


class ApiKey(Base, table=True):
    __tablename__ = "api_keys"

    id: UUID = Field(primary_key=True)
    user_id: UUID = Field(foreign_key="users.id", ondelete="CASCADE", index=True)
    name: str
    prefix: str
    digest: str = Field(unique=True)
    scopes: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    cidrs: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    created_at: datetime = moment()
    expires_at: datetime | None = moment(nullable=True)
    last_used_at: datetime | None = moment(nullable=True)


class LoginFailures(Base, table=True):
    """Failed logins counted under a key: `account:<name>@<network>` or `network:<network>`."""

    __tablename__ = "login_failures"

    key: str = Field(primary_key=True)
    failures: int
    window_ends_at: datetime = moment(index=True)
    locked_until: datetime | None = moment(nullable=True)


class Revocation(Base, table=True):
    """A session, key or user whose tokens issued until then are refused; kept as long as such a token can live."""

    __tablename__ = "revocations"

    scope: str = Field(primary_key=True)
    subject_id: str = Field(primary_key=True)
    revoked_at: datetime = moment(index=True)


class AuditEntry(Base, table=True):
    __tablename__ = "audit_entries"
    __table_args__ = (Index("audit_entries_actor", "actor_id", "number"),)

    number: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    at: datetime = moment()
    actor_id: str | None = None
    actor: str
    action: str = Field(index=True)
    target: str
    address: str
    detail: dict[str, Any] = document()
    hash: str


class OwnedResource(Base, table=True):
    """What a user owns in other services, learnt from their events."""

    __tablename__ = "owned_resources"

    service: str = Field(primary_key=True)
    type: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    owner_id: str = Field(index=True)
    name: str
    sequence: int = Field(sa_column=Column(BigInteger, nullable=False))
    deleted: bool = False


class ServiceUsage(Base, table=True):
    """How much of each quota an owner uses in one service."""

    __tablename__ = "service_usage"

    owner_id: str = Field(primary_key=True)
    service: str = Field(primary_key=True)
    used: dict[str, int] = document()
    sequence: int = Field(sa_column=Column(BigInteger, nullable=False))
