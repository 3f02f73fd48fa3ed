"""Who uses images: templates and machines that were made of them, as the vms service tells; in PostgreSQL."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, delete
from sqlmodel.ext.asyncio.session import AsyncSession

from services.images.models import Use


class UseRepository:
    """The uses of images, in the caller's transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def keep(self, use: Use) -> None:
        """Store what an event says of a template or machine, unless a newer one has been seen."""
        values = use.model_dump()
        await self._session.execute(
            insert(Use)
            .values(**values)
            .on_conflict_do_update(
                index_elements=["kind", "resource_id"], set_=values, where=col(Use.sequence) < use.sequence
            )
        )

    async def of(self, image_id: UUID, *, owner_id: str | None, limit: int = 100) -> Sequence[Use]:
        """What uses an image, of one owner or (None) of all, templates first."""
        query = select(Use).where(col(Use.image_id) == image_id)
        if owner_id is not None:
            query = query.where(col(Use.owner_id) == owner_id)
        order = (col(Use.kind) != "template", col(Use.kind), col(Use.name), col(Use.resource_id))
        return (await self._session.execute(query.order_by(*order).limit(limit))).scalars().all()

    async def counts(self, image_id: UUID) -> Sequence[Any]:
        """Rows of (kind, owner_id, count) of what uses an image."""
        keys = (col(Use.kind), col(Use.owner_id))
        query = select(*keys, func.count()).where(col(Use.image_id) == image_id).group_by(*keys).order_by(*keys)
        return (await self._session.execute(query)).all()

    async def forget_ended(self, days: float) -> None:
        """Forget what uses no image any more, once no event of its past can come."""
        old = col(Use.told_at) < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, days * 86_400)
        await self._session.execute(delete(Use).where(col(Use.image_id).is_(None), old))
