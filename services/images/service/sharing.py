"""Sharing: with whom an image is shared, and who is told so."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from libs.common.auth import Principal
from libs.common.errors import FieldError
from libs.common.events import Event
from libs.common.quotas import on_user_event, owner_named
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.images.domain import Action, Visibility
from services.images.errors import MemberUnknown
from services.images.models import Image
from services.images.repository import MemberRepository
from services.images.schemas import MemberOut, MembersOut
from services.images.service.records import changeable, may_change, readable, touch


@dataclass(frozen=True, slots=True)
class Shared:
    """An image and its list of members, as far as the caller may see it."""

    image: Image
    members: MembersOut


class Sharing:
    """The lists of members. For who may not see an image it raises ImageNotFound."""

    def __init__(self, uow: UnitOfWorkFactory) -> None:
        self._uow = uow

    async def members(self, principal: Principal, image_id: UUID) -> Shared:
        """The whole list for who may change it, oneself for a member, nobody for other readers."""
        async with self._uow() as uow:
            image = await readable(uow, principal, image_id)
            return await self._shown(uow, principal, image)

    async def replace(
        self, principal: Principal, image_id: UUID, names: Sequence[str], *, if_match: str | None
    ) -> Shared:
        """Share an image with these users and nobody else; its owner needs not be on the list.

        `names` are ids, names or external ids. Raises MemberUnknown with each that nobody has, PreconditionFailed.
        """
        async with self._uow() as uow:  # so that who may not change the image learns nothing of who is known
            await changeable(uow, principal, image_id, Action.CHANGE, if_match=if_match)
        found = [await owner_named(self._uow, name) for name in names]
        async with self._uow() as uow:
            image = await changeable(uow, principal, image_id, Action.CHANGE, if_match=if_match)
            members = MemberRepository(uow.session)
            alive = await members.locked_accounts({user_id for user_id in found if user_id is not None})
            unknown = [number for number, user_id in enumerate(found) if user_id not in alive]
            if unknown:
                raise MemberUnknown(
                    f"Nobody here is called {', '.join(repr(names[number]) for number in unknown)}",
                    errors=[FieldError(f"/body/members/{number}", "no such user") for number in unknown],
                )
            await members.replace(image_id, alive - {image.owner_id})
            touch(uow, image)
            shown = await self._shown(uow, principal, image)
            await uow.commit()
        return shown

    async def _shown(self, uow: UnitOfWork, principal: Principal, image: Image) -> Shared:
        rows = await MemberRepository(uow.session).of(image.id)
        if not may_change(principal, image):
            rows = [row for row in rows if row.user_id == principal.user_id]
        shown = MembersOut(
            members=[MemberOut(id=row.user_id, username=row.username) for row in rows],
            visibility=Visibility(image.visibility),
            effective=image.visibility == Visibility.SHARED,
        )
        return Shared(image, shown)


async def on_user_deleted(uow: UnitOfWork, event: Event) -> None:
    """Mark the account as deleted, then take it off every list: in this order nobody puts it back meanwhile."""
    await on_user_event(uow, event)
    await MemberRepository(uow.session).forget(event.subject)
