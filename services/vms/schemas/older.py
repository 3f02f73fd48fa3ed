"""Requests and responses of the older clients."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from services.vms.domain.states import State
from services.vms.schemas.fields import Asked, Cores, DiskGib, MemoryMib, Name, Word


class OlderVm(BaseModel):
    """A machine as the older VM API tells of it (`ram` in MiB, `disk` in GiB), with Telar's own words beside."""

    id: int
    name: str
    cores: int
    ram: int
    disk: int
    os: str
    status: str
    state: State
    owner_id: str
    vm_id: int | None
    uuid: UUID
    node: str | None
    created_at: datetime
    updated_at: datetime
    operation: dict[str, Any] | None = None


class CreateOlderVm(Asked):
    """The older VM API's request; `status` is what it used to store, and is not the client's to set any more."""

    name: Name
    cores: Cores = 1
    ram: MemoryMib = 1024
    disk: DiskGib | None = None
    os: Word
    status: str | None = Field(default=None, max_length=40)


class UpdateOlderVm(Asked):
    name: Name | None = None
    cores: Cores | None = None
    ram: MemoryMib | None = None
    disk: DiskGib | None = None
    os: Word | None = None
    status: str | None = Field(default=None, max_length=40)


class OlderMachine(BaseModel):
    """A machine as the older VM and stack API tells of it, with Telar's own words beside."""

    vm_id: int | None
    vm_name: str
    userid: str
    owner_id: str
    status: str
    state: State
    os_type: str
    node: str | None
    cores: int
    memory: int
    disksize: int
    ip_addresses: list[str] = []
    id: UUID
    number: int
    created_at: datetime
    operation: dict[str, Any] | None = None


class OlderConsole(BaseModel):
    """How to see a machine's display, as the older VM and stack API told it: in JSON, whichever kind it is."""

    vm_id: int | None
    vm_name: str
    node: str | None
    type: str
    ticket: str | None = None
    url: str | None = None
    expires_at: datetime | None = None
    viewer_file: dict[str, str] | None = None
    """For SPICE; each entry is a line `name=value` under `[virt-viewer]`."""
