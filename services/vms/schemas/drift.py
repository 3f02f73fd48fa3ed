"""Requests and responses on what differs between clusters and records."""

from datetime import datetime
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, model_validator

from services.vms.domain.drift import Kind, Resolution
from services.vms.schemas.fields import Asked, Word
from services.vms.schemas.machines import VmOut


class ResolveDrift(Asked):
    action: Resolution
    owner: Word | None = None
    """To whom an unknown machine shall belong that is adopted: a user's id, name or external id."""

    @model_validator(mode="after")
    def _owner_of_the_adopted(self) -> Self:
        if self.owner is not None and self.action is not Resolution.ADOPT:
            raise ValueError("owner goes with adopt")
        return self


class DifferenceOut(BaseModel):
    what: str
    record: str | int
    cluster: str | int


class DriftOut(BaseModel):
    """A machine that changed or vanished, or is unknown but carries Telar's tag; `actions` are what can be done."""

    id: UUID
    kind: Kind
    cluster: str
    vmid: int
    node: str | None
    name: str
    vm_id: UUID | None
    differences: list[DifferenceOut]
    actions: list[Resolution]
    first_seen_at: datetime


class DriftList(BaseModel):
    items: list[DriftOut]
    next_cursor: str | None = None


class Resolved(BaseModel):
    drift: DriftOut
    action: Resolution
    vm: VmOut | None = None
    operation: dict[str, Any] | None = None
