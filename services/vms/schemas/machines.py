"""Requests and responses on machines."""

from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints, model_validator

from services.vms.domain.history import Timeframe
from services.vms.domain.network import check_addresses
from services.vms.domain.states import State
from services.vms.schemas.fields import (
    Asked,
    ClusterName,
    Cores,
    DiskGib,
    GuestPassword,
    GuestUser,
    MemoryMib,
    Name,
    NodeName,
    PublicKeys,
    UserData,
    Word,
)


class Wish(Asked):
    """A machine's template and size; what is left out is the template's."""

    template: Word | None = None
    """A template's VMID, name or operating system."""
    os_type: Word | None = None
    """`Ubuntu` is the newest one, `ubuntu-24.04` exactly that."""
    image_id: UUID | None = None
    """An image that a template was made of."""
    cores: Cores | None = None
    memory_mib: MemoryMib | None = None
    disk_gib: DiskGib | None = None
    node: NodeName | None = None
    cluster: ClusterName | None = None
    """The cluster that fits best if not given."""

    @model_validator(mode="after")
    def _from_something(self) -> Self:
        if [self.template, self.os_type, self.image_id].count(None) != 2:  # noqa: PLR2004 - of three
            raise ValueError("give one of template, os_type and image_id")
        return self


class NetworkWish(Asked):
    """How the first card is connected. What is left out is the template's; addresses come by DHCP."""

    bridge: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,14}$")] | None = None
    vlan: Annotated[int, Field(ge=1, le=4094)] | None = None
    ip: Word | None = None
    """`dhcp`, or an address with its prefix length: 10.0.0.5/24."""
    gateway: IPv4Address | None = None
    ip6: Word | None = None
    """`dhcp`, `auto` (by router advertisements), or an address with its prefix length."""
    gateway6: IPv6Address | None = None
    nameservers: Annotated[list[IPv4Address | IPv6Address], Field(max_length=3)] | None = None
    search_domain: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")] | None
    ) = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        check_addresses(self.model_dump(mode="json", exclude_none=True))
        return self


class CreateVm(Wish):
    name: Name
    network: NetworkWish | None = None
    user_data: UserData | None = None
    """What cloud-init is given instead of the cluster's own data: `#cloud-config`, a script and so on."""
    ha: bool = False
    """Start it on another node when its own fails; needs a template on shared storage."""
    ssh_public_key: PublicKeys | None = None
    user: GuestUser | None = None
    """The first account in the guest; the template's own if not given."""
    password: GuestPassword | None = None
    start: bool = True


class UpdateVm(Asked):
    """What may be changed of a machine; what is absent or null stays."""

    name: Name | None = None
    cores: Cores | None = None
    memory_mib: MemoryMib | None = None
    disk_gib: DiskGib | None = None
    restart: bool = False
    """Restart a running machine, so that new cores and memory take effect."""


class VmOut(BaseModel):
    """A machine's record. `status` says `state` in the words that older clients read."""

    id: UUID
    number: int
    name: str
    owner_id: str
    state: State
    status: str
    reason: str | None
    os_type: str
    template: str
    image_id: UUID | None
    cluster: str
    node: str | None
    vmid: int | None
    cores: int
    memory_mib: int
    disk_gib: int
    ha: bool
    network: dict[str, Any] | None
    restart_needed: bool
    addresses: list[str]
    created_at: datetime
    updated_at: datetime
    etag: str


class LiveOut(BaseModel):
    """The machine's process as the cluster sees it now."""

    status: str
    uptime_s: int
    cpu_load: float
    memory_bytes: int


class PendingOut(BaseModel):
    """A size that the running machine has, and the one that it will have; null if it is unset."""

    name: str
    now: int | None
    then: int | None


class VmDetail(VmOut):
    """With what the cluster tells at this moment; `live` is null when it does not answer."""

    live: LiveOut | None = None
    pending: list[PendingOut] = []
    """What waits for the next start (`restart: true` in a PATCH does that)."""


class VmPage(BaseModel):
    items: list[VmOut]
    next_cursor: str | None = None


class MetricsOut(BaseModel):
    """One value of each series for each of `times`; null where nothing was measured."""

    timeframe: Timeframe
    times: list[datetime]
    cpu_ratio: list[float | None]
    """Share of the machine's cores, from 0 to 1."""
    cpu_cores: list[float | None]
    memory_used_bytes: list[float | None]
    memory_total_bytes: list[float | None]
    disk_total_bytes: list[float | None]
    disk_read_bytes_per_s: list[float | None]
    disk_written_bytes_per_s: list[float | None]
    network_received_bytes_per_s: list[float | None]
    network_sent_bytes_per_s: list[float | None]
