"""What the vms service tells the others; it consumes auth's user events and images' of images."""

from typing import ClassVar
from uuid import UUID

from pydantic import BaseModel

from libs.common.events import Payload
from libs.common.quotas import OwnedPayload


class VmEvent(OwnedPayload):
    """All that another service needs of a machine."""

    name: str
    state: str
    os_type: str
    cluster: str
    node: str | None
    vmid: int | None
    cores: int
    memory_mib: int
    disk_gib: int
    image_id: UUID | None = None
    """The image it was made of: images keeps one that is in use."""
    reason: str | None = None


class VmCreated(VmEvent):
    """The machine is recorded and reserved for; it is being made."""

    event_type: ClassVar[str] = "vms.vm.created.v1"


class VmUpdated(VmEvent):
    event_type: ClassVar[str] = "vms.vm.updated.v1"


class VmStateChanged(VmEvent):
    event_type: ClassVar[str] = "vms.vm.state_changed.v1"


class VmDeleted(VmEvent):
    event_type: ClassVar[str] = "vms.vm.deleted.v1"


class VmFailed(VmEvent):
    """An operation on the machine failed; `reason` tells why."""

    event_type: ClassVar[str] = "vms.vm.failed.v1"


class TemplateEvent(OwnedPayload):
    """All that another service needs of a template."""

    name: str
    state: str
    os_type: str
    cluster: str
    vmids: list[int]
    offered: bool
    image_id: UUID | None = None
    reason: str | None = None


class TemplateCreated(TemplateEvent):
    """There is a record; the template is being made, and its image is in use."""

    event_type: ClassVar[str] = "vms.template.created.v1"


class TemplateReady(TemplateEvent):
    """Machines can be made of it."""

    event_type: ClassVar[str] = "vms.template.ready.v1"


class TemplateFailed(TemplateEvent):
    """It could not be made; `reason` tells why, and nothing of it is left on the cluster."""

    event_type: ClassVar[str] = "vms.template.failed.v1"


class TemplateDeleted(TemplateEvent):
    event_type: ClassVar[str] = "vms.template.deleted.v1"


class ImageTold(BaseModel):
    """What is read of images' events on an image."""

    name: str
    os_type: str
    version: str
    format: str
    sha256: str | None
    status: str
    visibility: str
    virtual_size_bytes: int
    reason: str | None = None


class DriftEvent(Payload):
    """A machine and its record differ; `kind` is changed, vanished or unknown. Its subject is the difference's id."""

    cluster: str
    vmid: int
    kind: str
    node: str | None
    vm_id: UUID | None


class DriftFound(DriftEvent):
    """It has been so for long enough to be told."""

    event_type: ClassVar[str] = "vms.drift.found.v1"


class DriftResolved(DriftEvent):
    """An administrator has seen to it: by `adopt`, `forget` or `fix`."""

    event_type: ClassVar[str] = "vms.drift.resolved.v1"

    action: str
    resolved_by: str
