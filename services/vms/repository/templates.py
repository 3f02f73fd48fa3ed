"""Templates' records, and what was last told of images, in PostgreSQL."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from services.vms.models import SeenImage, TemplateRecord, Vm


class TemplateRepository:
    """In the caller's transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, template_id: UUID, *, for_update: bool = False) -> TemplateRecord | None:
        return await self._session.get(TemplateRecord, template_id, with_for_update=for_update or None)

    async def share(self, template_id: UUID) -> TemplateRecord | None:
        """Read one and keep it from being deleted until the end of the transaction."""
        return await self._session.get(TemplateRecord, template_id, with_for_update={"read": True})

    async def add(self, record: TemplateRecord) -> None:
        self._session.add(record)
        await self._session.flush()

    async def remove(self, record: TemplateRecord) -> None:
        await self._session.delete(record)
        await self._session.flush()

    async def all(self) -> Sequence[TemplateRecord]:
        """Every record, oldest first; there are as many as an operator offers."""
        query = select(TemplateRecord).order_by(col(TemplateRecord.created_at), col(TemplateRecord.id))
        return (await self._session.execute(query)).scalars().all()

    async def of_image(self, image_id: UUID, *, for_update: bool = False) -> Sequence[TemplateRecord]:
        query = select(TemplateRecord).where(col(TemplateRecord.image_id) == image_id).order_by(col(TemplateRecord.id))
        if for_update:
            query = query.with_for_update()
        return (await self._session.execute(query)).scalars().all()

    async def machines_of(self, template_id: UUID) -> int:
        """How many machines were made of one and are still there."""
        query = select(func.count()).select_from(Vm).where(col(Vm.template_id) == template_id)
        return int(await self._session.scalar(query) or 0)

    async def lock_image(self, image_id: UUID) -> None:
        """Let one at a time decide whether an image gets a template, until the end of the transaction."""
        await self._lock(f"template of {image_id}")

    async def lock_cluster(self, cluster: str) -> None:
        """Let one at a time look which templates a cluster has and add to them, until the end of the transaction."""
        await self._lock(f"templates on {cluster}")

    async def _lock(self, what: str) -> None:
        await self._session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(what, 0))))

    async def news(self, image_id: UUID, sequence: int) -> bool:
        """Note what was told of an image; False if something newer was told before."""
        noting = insert(SeenImage).values(image_id=image_id, sequence=sequence)
        noting = noting.on_conflict_do_update(
            index_elements=["image_id"], set_={"sequence": sequence}, where=col(SeenImage.sequence) < sequence
        )
        return (await self._session.execute(noting.returning(col(SeenImage.image_id)))).first() is not None
