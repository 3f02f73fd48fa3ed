"""What an image's record means to others: who may see it, who may change it, and how events tell of it."""

from typing import TypeVar
from uuid import UUID

from libs.common.auth import Principal
from libs.common.etag import check_if_match
from libs.common.quotas import ResourceRef, Usage
from libs.common.uow import UnitOfWork
from services.images.domain import SHOWN_TO_OTHERS, Action, Status, Visibility, require_allowed
from services.images.errors import ImageNotFound
from services.images.events import ImageEvent
from services.images.models import Image
from services.images.repository import ImageRepository, MemberRepository

E = TypeVar("E", bound=ImageEvent)


def may_read(principal: Principal, image: Image, *, is_member: bool = False) -> bool:
    """`is_member` says that the image's list of members names the caller; it counts while the image is shared."""
    if principal.may_see(image.owner_id):
        return True
    if image.status not in SHOWN_TO_OTHERS:
        return False
    return image.visibility == Visibility.PUBLIC or (image.visibility == Visibility.SHARED and is_member)


def may_change(principal: Principal, image: Image) -> bool:
    return not principal.is_service and principal.may_see(image.owner_id)


def reader_of(principal: Principal) -> str | None:
    """Whose images a query is to find: None finds everybody's."""
    return None if principal.is_admin or principal.is_service else principal.user_id


async def readable(uow: UnitOfWork, principal: Principal, image_id: UUID) -> Image:
    """An image that the caller may read; raises ImageNotFound."""
    image = await ImageRepository(uow.session).get(image_id)
    if image is None:
        raise ImageNotFound
    is_member = not principal.may_see(image.owner_id) and image.visibility == Visibility.SHARED
    if is_member:
        is_member = await MemberRepository(uow.session).has(image_id, principal.user_id)
    if not may_read(principal, image, is_member=is_member):
        raise ImageNotFound
    return image


async def changeable(
    uow: UnitOfWork, principal: Principal, image_id: UUID, action: Action, *, if_match: str | None = None
) -> Image:
    """Lock an image that the caller may change; raises ImageNotFound, PreconditionFailed, ImageState."""
    image = await ImageRepository(uow.session).get(image_id, for_update=True)
    if image is None or not may_change(principal, image):
        raise ImageNotFound
    check_if_match(if_match, image.version)
    require_allowed(action, Status(image.status))
    return image


def touch(uow: UnitOfWork, image: Image) -> None:
    """Note that a locked image is changed: whoever meant the version before learns of it."""
    image.version += 1
    image.updated_at = uow.clock.now()


def tell(uow: UnitOfWork, event: type[ImageEvent], image: Image, usage: Usage | None = None) -> None:
    """Say what happened to an image when the unit of work commits."""
    uow.add_event(payload(event, image, usage), subject=str(image.id), owner=image.owner_id, sequence=image.version)


def payload(event: type[E], image: Image, usage: Usage | None) -> E:
    """Tell of an image as it is now; `usage` is what the owner uses if that changed with it."""
    return event(
        resource=ResourceRef(type="image", id=str(image.id), name=image.name),
        usage=usage,
        name=image.name,
        os_type=image.os_type,
        version=image.os_version,
        architecture=image.architecture,
        format=image.format,
        size_bytes=image.size_bytes,
        virtual_size_bytes=image.virtual_size_bytes,
        sha256=image.sha256,
        status=image.status,
        visibility=image.visibility,
        reason=image.reason,
    )
