"""Requests and responses on templates, nodes and placement."""

from typing import Annotated, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from services.vms.domain.templates import TemplateStatus
from services.vms.schemas.fields import Asked, ClusterName, MemoryMib, OsWord, TemplateWord, one_line
from services.vms.schemas.machines import Wish


class PlacementRequest(Wish):
    ha: bool = False


class CreateTemplate(Asked):
    """Of which image, or of which template of a cluster; names and sizes are made up from it if not given."""

    image_id: UUID | None = None
    vmid: Annotated[int, Field(ge=100, le=999_999_999)] | None = None
    """A template that a cluster has; it is offered under this name and operating system, and never changed."""
    cluster: ClusterName | None = None
    """The first one if not given."""
    name: TemplateWord | None = None
    os_type: OsWord | None = None
    cores: Annotated[int, Field(ge=1, le=128)] | None = None
    memory_mib: MemoryMib | None = None

    @model_validator(mode="after")
    def _from_something(self) -> Self:
        if (self.image_id is None) == (self.vmid is None):
            raise ValueError("give either image_id or vmid")
        if self.vmid is not None and (self.cores is not None or self.memory_mib is not None):
            raise ValueError("a template that is registered has the sizes that it has")
        return self


class MaintenanceWish(Asked):
    reason: Annotated[str, StringConstraints(max_length=200), AfterValidator(one_line)] = ""


class TemplateOut(BaseModel):
    """A template and its copies on the clusters' nodes."""

    name: str
    os_type: str
    cluster: str
    cores: int
    memory_mib: int
    disk_gib: int
    cloud_init: bool
    vmids: list[int]
    id: UUID | None = None
    """Of a template that Telar made or registered."""
    image_id: UUID | None = None
    state: TemplateStatus = TemplateStatus.READY
    offered: bool = True
    """Whether machines can be made of it now."""
    reason: str | None = None
    etag: str | None = None


class TemplateList(BaseModel):
    items: list[TemplateOut]


class NodeOut(BaseModel):
    """A node's size, what it uses, and what Telar's machines and others were promised on it."""

    name: str
    cluster: str
    online: bool
    cores: int
    memory_mib: int
    memory_used_mib: int
    cpu_load: float
    uptime_s: int
    machines: int
    promised_cores: int
    promised_memory_mib: int
    maintenance: bool = False
    maintenance_reason: str | None = None
    trouble: str | None = None
    """Why it is left alone for now: calls to it got no answer."""


class NodeList(BaseModel):
    items: list[NodeOut]


class VerdictOut(BaseModel):
    cluster: str
    node: str
    fits: bool
    reasons: list[str]
    score: float
    weights: dict[str, float]


class PlacementOut(BaseModel):
    """Every node, the best first; `node` is the one that would be chosen now, null if none fits."""

    cluster: str
    template: str
    node: str | None
    verdicts: list[VerdictOut]
