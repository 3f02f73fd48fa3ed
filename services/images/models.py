"""Tables of the images service."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import BigInteger, Column, DateTime, Index, MetaData, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from libs.common.names import grams_index

METADATA = MetaData()
SORTABLE = ("created_at", "updated_at", "name", "size_bytes", "downloads")
"""What lists of images can be sorted by."""


class Base(SQLModel, registry=registry(metadata=METADATA)):
    """Keeps this service's tables apart from those of others in the same process."""

    metadata: ClassVar[MetaData] = METADATA


def moment() -> Any:
    """A timezone-aware column; a fresh Column object for each use."""
    return Field(sa_column=Column(DateTime(timezone=True), nullable=False))


def size() -> Any:
    return Field(sa_column=Column(BigInteger, nullable=False))


class Image(Base, table=True):
    """An image's record. `version` counts its changes, `os_version` is the operating system's."""

    __tablename__ = "images"
    __table_args__ = (
        # Each order of a list, for one owner and for one visibility; see `repository.listing`.
        *(Index(f"images_owner_{order}", "owner_id", order, "id") for order in SORTABLE),
        *(Index(f"images_visibility_{order}", "visibility", order, "id") for order in SORTABLE),
        # Filters on what is rare; what is frequent is met soon enough on the way through an order.
        Index("images_os_type", text("lower(os_type)"), "name", "id"),  # in one, since names often begin with it
        Index("images_architecture", "architecture"),
        Index("images_format", "format"),
        Index("images_status", "status"),
        grams_index("images"),
        Index("images_sha256", "sha256"),
    )

    id: UUID = Field(primary_key=True)
    owner_id: str
    name: str
    os_type: str
    os_version: str
    architecture: str
    description: str
    format: str
    status: str
    reason: str | None = None
    visibility: str
    protected: bool = False
    min_disk_gib: int = 0
    min_memory_mib: int = 0
    tags: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    size_bytes: int = size()
    virtual_size_bytes: int = size()
    sha256: str | None = Field(default=None, foreign_key="blobs.sha256")
    """The digest of its blob, and its reference on it; none before the image is active, none once it is rejected."""
    sha512: str | None = None
    derived_from: UUID | None = Field(default=None, index=True)
    """The image it was converted from, which may be gone."""
    provenance: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    """Where it came from and what was seen in it; see `schemas.ProvenanceOut`."""
    downloads: int = size()
    version: int = 1
    created_at: datetime = moment()
    updated_at: datetime = moment()


class Blob(Base, table=True):
    """A stored file, however many images share it; the row goes with its last reference."""

    __tablename__ = "blobs"
    __table_args__ = (Index("blobs_verified", "verified_at", "sha256"),)

    sha256: str = Field(primary_key=True)
    key: str = Field(unique=True)
    """Where the store keeps it: not the digest alone, so that a blob on its way out never meets its successor."""
    size_bytes: int = size()
    reference_count: int
    verified_at: datetime = moment()
    """When its bytes last had the digest."""
    rotten_at: datetime | None = Field(default=None, sa_column=Column(DateTime(timezone=True)))
    """Since when they are known to have another one."""


class Upload(Base, table=True):
    """A file on its way in and the bytes reserved for it; its id becomes the image's. Dead once its lease has run out.

    A `multipart` one lives as long as its request. The others have an image record from the beginning and go on after
    a crash: what is staged counts up to `offset_bytes`.
    """

    __tablename__ = "uploads"

    id: UUID = Field(primary_key=True)
    owner_id: str
    kind: str
    reserved_bytes: int = size()
    length_bytes: int | None = Field(default=None, sa_column=Column(BigInteger))
    """How long the file will be, if that is known."""
    offset_bytes: int = size()
    """How much of it is staged durably."""
    writer: int = 0
    """tus: counts who began to write to it; only the newest one's bytes count."""
    expected_sha256: str | None = None
    metadata_header: str = ""
    """tus: `Upload-Metadata` as the client sent it."""
    lease_until: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False, index=True))
    created_at: datetime = moment()


class Member(Base, table=True):
    """A user with whom an image is shared; read while its visibility is `shared`."""

    __tablename__ = "image_members"
    __table_args__ = (Index("image_members_user", "user_id", "image_id"),)

    image_id: UUID = Field(primary_key=True, foreign_key="images.id", ondelete="CASCADE")
    user_id: str = Field(primary_key=True)


class Use(Base, table=True):
    """A template or machine that was made of an image: what the vms service told last.

    One without an image is gone, or was never made of one: it is kept for a while so that an older event that arrives
    late does not bring it back.
    """

    __tablename__ = "image_uses"

    kind: str = Field(primary_key=True)
    resource_id: str = Field(primary_key=True)
    image_id: UUID | None = Field(default=None, index=True)
    name: str
    owner_id: str | None = None
    sequence: int
    told_at: datetime = moment()
