"""Tables of the containers service."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import Column, DateTime, ForeignKey, Identity, Index, Integer, MetaData, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

METADATA = MetaData()
SORTABLE = ("created_at", "updated_at", "name")
"""What lists of stacks can be sorted by."""


class Base(SQLModel, registry=registry(metadata=METADATA)):
    """Keeps this service's tables apart from those of others in the same process."""

    metadata: ClassVar[MetaData] = METADATA


def moment() -> Any:
    """A timezone-aware column; a fresh Column object for each use."""
    return Field(sa_column=Column(DateTime(timezone=True), nullable=False))


def document() -> Any:
    return Field(sa_column=Column(JSONB, nullable=False))


class Stack(Base, table=True):
    """A stack's record; `version` counts its changes, `number` is its integer name for older clients."""

    __tablename__ = "stacks"
    __table_args__ = (
        # Each order of a list, of all stacks and of one owner's; and states, of which some are rare.
        *(Index(f"stacks_{order}", order, "id") for order in SORTABLE),
        *(Index(f"stacks_owner_{order}", "owner_id", order, "id") for order in SORTABLE),
        Index("stacks_state", "state"),
        Index(
            "stacks_owner_name_once",
            "owner_id",
            text("lower(name)"),
            unique=True,
            postgresql_where=text("state <> 'failed'"),
        ),
    )

    id: UUID = Field(primary_key=True)
    number: int = Field(default=None, sa_column=Column(Integer, Identity(always=True), nullable=False, unique=True))
    owner_id: str
    name: str
    project: str = Field(unique=True)
    state: str
    health: str = "unknown"
    """As the engine said it last."""
    reason: str | None = None
    service_types: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    primary_app_type: str
    variables: dict[str, Any] = document()
    limits: dict[str, Any] = document()
    services: list[dict[str, Any]] = document()
    compose: str | None = Field(default=None, sa_column=Column(Text))
    """The compose file as it runs, once it was rendered."""
    revision: int = 0
    """The number of the revision that runs; 0 until the first is deployed."""
    latest_revision: int = 0
    """The highest number given to a revision so far."""
    reserved: dict[str, int] = document()
    """What it holds of its owner's quota; empty once it was given back."""
    version: int = 1
    created_at: datetime = moment()
    updated_at: datetime = moment()


class StackRevision(Base, table=True):
    """What a stack was, is or shall be: never changed once it was deployed, except that `state` tells its fate.

    `archive` names the ZIP of its code as it came; `copy_number` the working copy that its services mount, which the
    file manager may change; `images` maps its services to the images they ran.
    """

    __tablename__ = "stack_revisions"

    stack_id: UUID = Field(
        sa_column=Column(Uuid, ForeignKey("stacks.id", ondelete="CASCADE"), primary_key=True, nullable=False)
    )
    number: int = Field(primary_key=True)
    state: str
    reason: str | None = None
    cause: str
    of_revision: int | None = None
    """The revision that a rollback goes back to."""
    service_types: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    primary_app_type: str | None = None
    variables: dict[str, Any] = document()
    limits: dict[str, Any] = document()
    services: list[dict[str, Any]] = document()
    reserved: dict[str, int] = document()
    """What it takes of its owner's quota while it runs."""
    file_manager: bool = True
    own_compose: str | None = Field(default=None, sa_column=Column(Text))
    """The compose file as its owner wrote it, of a stack without templates."""
    source: dict[str, Any] = document()
    git_credentials: str | None = Field(default=None, sa_column=Column(Text))
    """Sealed: the user name and the deploy token of its repository, and the origin that they are for."""
    source_digest: str | None = None
    archive: str | None = None
    copy_number: int
    images: dict[str, Any] = document()
    compose: str | None = Field(default=None, sa_column=Column(Text))
    """The compose file as it runs, once it was rendered."""
    created_at: datetime = moment()


class HostPort(Base, table=True):
    """A host port that belongs to one stack: the key is what lets only one of parallel requests have it."""

    __tablename__ = "host_ports"

    port: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    stack_id: UUID = Field(
        sa_column=Column(Uuid, ForeignKey("stacks.id", ondelete="CASCADE"), nullable=False, index=True)
    )
