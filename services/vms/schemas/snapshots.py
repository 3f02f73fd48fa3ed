"""Requests and responses on snapshots."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, StringConstraints

from services.vms.domain.snapshots import NAME_PATTERN, SnapshotState
from services.vms.schemas.fields import Asked, Description, free_name


class TakeSnapshot(Asked):
    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN), AfterValidator(free_name)]
    description: Description = ""
    include_memory: bool = False
    """Keep the memory of a running machine, too: going back then goes on where it was."""


class RollBack(Asked):
    start: bool | None = None
    """Whether it shall run afterwards; null: if it runs now. With memory in the snapshot it runs in any case."""


class SnapshotOut(BaseModel):
    """A snapshot; `current` is the one that the machine goes on from. `created_at` is null while it is being taken."""

    name: str
    description: str
    created_at: datetime | None
    parent: str | None
    children: list[str]
    includes_memory: bool
    current: bool
    state: SnapshotState


class SnapshotList(BaseModel):
    items: list[SnapshotOut]
    current: str | None
