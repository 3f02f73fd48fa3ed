"""Tables of the vms service."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import BigInteger, Column, DateTime, Identity, Index, LargeBinary, MetaData, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from libs.common.names import grams_index

METADATA = MetaData()
SORTABLE = ("created_at", "updated_at", "name", "cores", "memory_mib", "disk_gib")
"""What lists of machines can be sorted by."""


class Base(SQLModel, registry=registry(metadata=METADATA)):
    """Keeps this service's tables apart from those of others in the same process."""

    metadata: ClassVar[MetaData] = METADATA


def moment() -> Any:
    """A timezone-aware column; a fresh Column object for each use."""
    return Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class Vm(Base, table=True):
    """A virtual machine's record. `version` counts its changes."""

    __tablename__ = "vms"
    __mapper_args__: ClassVar[Any] = {"eager_defaults": True}  # the number comes back with the INSERT
    __table_args__ = (
        # Each order of a list, of all machines and of one owner's.
        *(Index(f"vms_{order}", order, "id") for order in SORTABLE),
        *(Index(f"vms_owner_{order}", "owner_id", order, "id") for order in SORTABLE),
        # Filters on what is rare; what is frequent is met soon enough on the way through an order.
        grams_index("vms"),
        Index("vms_state", "state"),
        Index("vms_node", "node"),
        Index("vms_cluster_node", "cluster", "node"),
        Index("vms_vmid", "vmid"),
        Index("vms_addresses_at", "cluster", "addresses_at", postgresql_where=text("state = 'running'")),
    )

    id: UUID = Field(primary_key=True)
    number: int | None = Field(
        default=None, sa_column=Column(BigInteger, Identity(always=True), nullable=False, unique=True)
    )
    """The integer by which the older VM API knows it."""
    owner_id: str
    name: str
    os_type: str
    template: str
    """The template's name, of which there may be copies."""
    cluster: str
    node: str | None = None
    """Where it is, or is going to be."""
    vmid: int | None = None
    """None while it has to get another one."""
    state: str
    reason: str | None = None
    cores: int
    memory_mib: int
    disk_gib: int
    restart_needed: bool = False
    """Whether cores or memory were changed since it was started."""
    reserved: dict[str, int] = Field(sa_column=Column(JSONB, nullable=False))
    """What it counts in its owner's quotas."""
    image_id: UUID | None = None
    """The catalog image that its template was made of."""
    template_id: UUID | None = Field(default=None, index=True)
    """The template's record, if Telar made or registered it."""
    ha: bool = False
    """Whether its owner wants it started elsewhere when its node fails."""
    network: dict[str, Any] | None = Field(default=None, sa_column=Column(JSONB))
    seed_volume: str | None = None
    """The volume of its NoCloud seed, on `seed_node` if that is set (a local storage)."""
    seed_node: str | None = None
    sealed_user_data: str | None = None
    """What its owner gave it for its first start, sealed, until the seed is made."""
    guest_user: str | None = None
    ssh_public_key: str | None = None
    sealed_password: str | None = None
    """The first password, sealed, until it was handed to the cluster."""
    addresses: list[str] = Field(default_factory=list, sa_column=Column(JSONB, nullable=False))
    """Those that its guest told last, at `addresses_at`."""
    addresses_at: datetime | None = Field(default=None, sa_column=Column(DateTime(timezone=True)))
    version: int = 1
    created_at: datetime = moment()
    updated_at: datetime = moment()
    state_at: datetime = moment()
    """When its state was last known at first hand."""


class VmidLease(Base, table=True):
    """A VMID that nobody else may take: a machine's, one whose machine must still be removed, or a stranger's."""

    __tablename__ = "vmid_leases"
    __table_args__ = (Index("vmid_leases_vm", "vm_id"),)

    cluster: str = Field(primary_key=True)
    vmid: int = Field(primary_key=True)
    state: str
    """held, leftover or foreign."""
    vm_id: UUID
    node: str | None = None
    reason: str = ""
    since: datetime = moment()


class ConsoleTicket(Base, table=True):
    """Lets one WebSocket through to one machine's display. Who asked is kept as the token said it."""

    __tablename__ = "console_tickets"
    __table_args__ = (Index("console_tickets_expires", "expires_at"),)

    digest: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    """SHA-256 of the ticket, which is stored nowhere."""
    vm_id: UUID
    user_id: str
    username: str
    session_id: str
    is_admin: bool
    token_issued_at: float
    expires_at: datetime = moment()


class TemplateRecord(Base, table=True):
    """A template that Telar made of an image, or one of a cluster's own that was registered. `version` counts changes.

    `copies` are its machines: `vmid`, `node`, and for one made here also `storage`, `import_storage` and `made`.
    """

    __tablename__ = "templates"
    __table_args__ = (
        Index("templates_created", "created_at", "id"),
        Index("templates_image", "image_id"),
    )

    id: UUID = Field(primary_key=True)
    owner_id: str
    name: str
    os_type: str
    cluster: str
    state: str
    offered: bool = True
    """Whether machines may be made of it; the image's state decides."""
    reason: str | None = None
    image_id: UUID | None = None
    private: bool = False
    """Whether its image is not everybody's: who may read the image names it by `image_id`, and nobody else sees it."""
    format: str | None = None
    sha256: str | None = None
    cores: int
    memory_mib: int
    disk_gib: int
    copies: list[dict[str, Any]] = Field(sa_column=Column(JSONB, nullable=False))
    version: int = 1
    created_at: datetime = moment()
    updated_at: datetime = moment()


class SeenImage(Base, table=True):
    """The newest event on an image that was handled: an older one that arrives late changes nothing."""

    __tablename__ = "seen_images"

    image_id: UUID = Field(primary_key=True)
    sequence: int = Field(sa_column=Column(BigInteger, nullable=False))


class Maintenance(Base, table=True):
    """A node on which an administrator wants no new machine."""

    __tablename__ = "node_maintenance"

    cluster: str = Field(primary_key=True)
    node: str = Field(primary_key=True)
    reason: str = ""
    set_by: str
    since: datetime = moment()


class Drift(Base, table=True):
    """A machine that differs from its record, or of which there is only one of the two; found again and again."""

    __tablename__ = "drift"
    __table_args__ = (Index("drift_machine", "cluster", "vmid", unique=True),)

    id: UUID = Field(primary_key=True)
    cluster: str
    vmid: int
    kind: str
    vm_id: UUID | None = None
    node: str | None = None
    name: str = ""
    differences: list[dict[str, Any]] = Field(sa_column=Column(JSONB, nullable=False))
    first_seen_at: datetime = moment()
    reported_at: datetime | None = Field(default=None, sa_column=Column(DateTime(timezone=True)))
    """None until it has been so for a while."""
