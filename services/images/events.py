"""What the images service tells the others; it consumes auth's user events and vms' of templates and machines."""

from typing import ClassVar
from uuid import UUID

from pydantic import BaseModel

from libs.common.events import Payload
from libs.common.quotas import OwnedPayload, ResourceRef, Usage


class ImageEvent(OwnedPayload):
    """All that another service needs of an image; `version` is the operating system's."""

    name: str
    os_type: str
    version: str
    architecture: str
    format: str
    size_bytes: int
    virtual_size_bytes: int
    sha256: str | None
    status: str
    visibility: str
    reason: str | None = None


class ImageCreated(ImageEvent):
    """There is a record and space is reserved; the file is on its way."""

    event_type: ClassVar[str] = "images.image.created.v1"


class ImageRejected(ImageEvent):
    """The file was refused and removed; `reason` says why. The record stays until its owner deletes it."""

    event_type: ClassVar[str] = "images.image.rejected.v1"


class ImageUpdated(ImageEvent):
    """Its owner changed what is told of it, or who may see it."""

    event_type: ClassVar[str] = "images.image.updated.v1"


class ImageActivated(ImageEvent):
    """The image can be downloaded: it was uploaded, or activated again."""

    event_type: ClassVar[str] = "images.image.activated.v1"


class ImageDeactivated(ImageEvent):
    """The image can no longer be downloaded; it may come back. `reason` is set if its file was found rotten."""

    event_type: ClassVar[str] = "images.image.deactivated.v1"


class ImageDeleted(ImageEvent):
    event_type: ClassVar[str] = "images.image.deleted.v1"


class UsageChanged(Payload):
    """An upload that came to nothing gave its space back; there is no image to tell of."""

    event_type: ClassVar[str] = "images.usage.changed.v1"
    usage: Usage


class MadeOfImage(BaseModel):
    """What is read of vms' events: a template or machine, and the image it was made of, if any."""

    resource: ResourceRef
    image_id: UUID | None = None
