"""Image records in PostgreSQL."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.pagination import PageRequest
from services.images.domain import Status
from services.images.models import Image
from services.images.repository.listing import ImageFilter, page_of, readable

_PLAN_LISTS = text(
    "SELECT set_config('plan_cache_mode', 'force_custom_plan', true),"
    " set_config('max_parallel_workers_per_gather', '0', true)"
)
"""For one transaction. A prepared statement's generic plan would walk an order to its end for a filter on what is rare,
and to start a worker takes longer than a page."""


class ImageRepository:
    """The image records, in the caller's transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, image_id: UUID, *, for_update: bool = False) -> Image | None:
        return await self._session.get(Image, image_id, with_for_update=for_update or None)

    def add(self, image: Image) -> None:
        self._session.add(image)

    async def remove(self, image: Image) -> None:
        await self._session.delete(image)
        await self._session.flush()

    async def list(self, wanted: ImageFilter, request: PageRequest, *, reader_id: str | None) -> Sequence[Any]:
        """One page, and one image more if there are any, of what `reader_id` may read; None reads all.

        Rows with an image's attributes, all but its provenance.
        """
        await self._session.execute(_PLAN_LISTS)
        statement, values = page_of(wanted, request, reader_id=reader_id)
        return (await self._session.execute(statement, values)).all()

    async def lock_sharing(self, sha256: str) -> Sequence[Image]:
        """Lock every image of a blob, in the order of their ids."""
        query = select(Image).where(col(Image.sha256) == sha256).order_by(col(Image.id)).with_for_update()
        return (await self._session.execute(query, execution_options={"populate_existing": True})).scalars().all()

    async def count_sharing(self, sha256: str) -> int:
        """How many images a blob has by now."""
        return await self._session.scalar(select(func.count()).where(col(Image.sha256) == sha256)) or 0

    async def derived(self, image_id: UUID, *, reader_id: str | None, limit: int) -> Sequence[Image]:
        """The newest images that were converted from that one, of those that `reader_id` may read; None reads all."""
        query = select(Image).where(col(Image.derived_from) == image_id, readable())
        newest = query.order_by(col(Image.id).desc()).limit(limit)
        return (await self._session.execute(newest, {"reader": reader_id})).scalars().all()

    async def set_status(self, image_id: UUID, status: Status, *, after: Status) -> bool:
        """Move an image on without a new version; False if it was not there any more or not `after`."""
        moved = await self._session.scalar(
            update(Image)
            .where(col(Image.id) == image_id, col(Image.status) == after.value)
            .values(status=status.value, updated_at=func.now())
            .returning(col(Image.id))
        )
        return moved is not None

    async def rejected_before(self, days: float) -> Sequence[UUID]:
        """Rejected images that nobody has touched for so many days; protected ones stay."""
        old = col(Image.updated_at) < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, days * 86_400)
        rejected = col(Image.status) == Status.REJECTED.value
        rows = await self._session.execute(select(col(Image.id)).where(rejected, old, ~col(Image.protected)))
        return rows.scalars().all()

    async def count_download(self, image_id: UUID) -> None:
        await self._session.execute(
            update(Image).where(col(Image.id) == image_id).values(downloads=Image.downloads + 1)
        )

    async def totals(self, owner_id: str | None) -> Sequence[Any]:
        """Rows of (os_type, format, status, images, bytes, downloads); None counts everyone's."""
        keys = (col(Image.os_type), col(Image.format), col(Image.status))
        query = select(
            *keys,
            func.count().label("images"),
            func.sum(Image.size_bytes).label("bytes"),
            func.sum(Image.downloads).label("downloads"),
        ).group_by(*keys)
        if owner_id is not None:
            query = query.where(col(Image.owner_id) == owner_id)
        return (await self._session.execute(query)).all()
