"""Uploads under way in PostgreSQL; leases are measured by the database's clock."""

from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlmodel import col, delete
from sqlmodel.ext.asyncio.session import AsyncSession

from services.images.models import Upload


class UploadRepository:
    """The uploads under way, in the caller's transaction; leases are measured by the database's clock."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, upload: Upload, *, lease_s: float) -> None:
        """Add an upload with a lease from now on by the database's clock, whatever its `lease_until` says."""
        values = upload.model_dump(exclude={"lease_until"})
        await self._session.execute(insert(Upload).values(**values, lease_until=_from_now(lease_s)))

    async def get(self, upload_id: UUID, *, for_update: bool = False) -> Upload | None:
        """An upload that is alive."""
        query = select(Upload).where(col(Upload.id) == upload_id, col(Upload.lease_until) >= func.now())
        if for_update:
            query = query.with_for_update()
        return (await self._session.execute(query)).scalar_one_or_none()

    async def advance(
        self, upload_id: UUID, *, from_bytes: int, to_bytes: int, lease_s: float, writer: int = 0
    ) -> bool:
        """Note that more of the file is staged durably; False if the upload is dead or somebody else writes to it."""
        is_own = (col(Upload.offset_bytes) == from_bytes) & (col(Upload.writer) == writer)
        advanced = await self._session.scalar(
            update(Upload)
            .where(col(Upload.id) == upload_id, is_own)
            .values(offset_bytes=to_bytes, lease_until=_from_now(lease_s))
            .returning(col(Upload.id))
        )
        return advanced is not None

    async def renew(self, upload_id: UUID, lease_s: float, *, writer: int = 0) -> bool:
        """Whether the upload is still alive, now until `lease_s` from here, and nobody else writes to it."""
        renewed = await self._session.scalar(
            update(Upload)
            .where(col(Upload.id) == upload_id, col(Upload.writer) == writer)
            .values(lease_until=_from_now(lease_s))
            .returning(col(Upload.id))
        )
        return renewed is not None

    async def grow(self, upload_id: UUID, more_bytes: int) -> bool:
        """Note that more was reserved; False if the upload is dead."""
        grown = await self._session.scalar(
            update(Upload)
            .where(col(Upload.id) == upload_id)
            .values(reserved_bytes=Upload.reserved_bytes + more_bytes)
            .returning(col(Upload.id))
        )
        return grown is not None

    async def end(self, upload_id: UUID, *, if_dead: bool = False) -> tuple[str, int] | None:
        """Forget an upload: its owner and what it had reserved; None if somebody else ended it (or it is alive)."""
        statement = delete(Upload).where(col(Upload.id) == upload_id)
        if if_dead:
            statement = statement.where(col(Upload.lease_until) < func.now())
        row = await self._session.execute(statement.returning(col(Upload.owner_id), col(Upload.reserved_bytes)))
        ended = row.one_or_none()
        return None if ended is None else (ended.owner_id, ended.reserved_bytes)

    async def dead(self) -> Sequence[UUID]:
        rows = await self._session.execute(select(col(Upload.id)).where(col(Upload.lease_until) < func.now()))
        return rows.scalars().all()

    async def dead_one(self, upload_id: UUID) -> Upload | None:
        """Lock an upload whose lease has run out."""
        query = select(Upload).where(col(Upload.id) == upload_id, col(Upload.lease_until) < func.now())
        return (await self._session.execute(query.with_for_update())).scalar_one_or_none()

    async def known(self, upload_ids: Collection[UUID]) -> set[UUID]:
        rows = await self._session.execute(select(col(Upload.id)).where(col(Upload.id).in_(upload_ids)))
        return set(rows.scalars())


def _from_now(seconds: float) -> ColumnElement[datetime]:
    return func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
