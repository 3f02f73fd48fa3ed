"""Who uses an image: what vms tells of templates and machines, and why an image in use stays."""

from collections.abc import Mapping
from uuid import UUID

from libs.common.auth import Principal
from libs.common.events import Event
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.images.errors import ImageInUse
from services.images.events import MadeOfImage
from services.images.models import Use
from services.images.repository import UseRepository
from services.images.service.records import reader_of

USE_EVENTS = (
    *(f"vms.vm.{verb}.v1" for verb in ("created", "updated", "state_changed", "failed", "deleted")),
    *(f"vms.template.{verb}.v1" for verb in ("created", "updated", "ready", "failed", "deleted")),
)
"""Whatever tells of a template or machine; `image_id` in their data is the image it was made of, if any."""
_ENDS = frozenset({("vm", "deleted"), ("template", "deleted"), ("template", "failed")})
"""After these nothing is left that needs the image; a machine that failed is still there."""
_WORDS: Mapping[str, tuple[str, str]] = {"template": ("template", "templates"), "vm": ("machine", "machines")}
_KEPT_DAYS = 30.0
"""No broker redelivers later; the inbox remembers as long."""


class Uses:
    """The upkeep of what is known of templates and machines."""

    def __init__(self, uow: UnitOfWorkFactory) -> None:
        self._uow = uow

    async def sweep(self) -> None:
        """Forget what has used no image for long."""
        async with self._uow() as uow:
            await UseRepository(uow.session).forget_ended(_KEPT_DAYS)
            await uow.commit()


async def keep_use(uow: UnitOfWork, event: Event) -> None:
    """Remember of which image a template or machine was made; an event older than the last seen changes nothing."""
    _, noun, verb = event.type.split(".")[:3]
    told = MadeOfImage.model_validate(event.data)
    use = Use(
        kind=told.resource.type,
        resource_id=told.resource.id,
        image_id=None if (noun, verb) in _ENDS else told.image_id,
        name=told.resource.name,
        owner_id=event.owner,
        sequence=event.sequence,
        told_at=uow.clock.now(),
    )
    await UseRepository(uow.session).keep(use)


async def require_unused(uow: UnitOfWork, principal: Principal, image_id: UUID) -> None:
    """Raise ImageInUse, naming what the caller may see and counting the rest, if anything was made of the image."""
    uses = UseRepository(uow.session)
    counts = await uses.counts(image_id)
    if not counts:
        return
    total: dict[str, int] = {}
    for kind, _, count in counts:
        total[kind] = total.get(kind, 0) + count
    reader = reader_of(principal)
    others = 0 if reader is None else sum(count for _, owner, count in counts if owner != reader)
    detail = f"{' and '.join(_counted(kind, count) for kind, count in total.items())} made of it must be deleted first"
    if others:
        detail += f"; {others} of them {'belongs' if others == 1 else 'belong'} to other users"
    seen = await uses.of(image_id, owner_id=reader)
    raise ImageInUse(detail, [{"type": use.kind, "id": use.resource_id, "name": use.name} for use in seen])


def _counted(kind: str, count: int) -> str:
    one, many = _WORDS.get(kind, (kind, f"{kind}s"))
    return f"{count} {one if count == 1 else many}"
