"""With whom images are shared, in PostgreSQL."""

from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select
from sqlmodel import col, delete
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.quotas import accounts_table
from services.images.models import Member

_account = accounts_table.c


class MemberRepository:
    """The lists of members, in the caller's transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def has(self, image_id: UUID, user_id: str) -> bool:
        return await self._session.get(Member, (image_id, user_id)) is not None

    async def of(self, image_id: UUID) -> Sequence[Any]:
        """Rows of (user_id, username), by name."""
        account = _account.owner_id == col(Member.user_id)
        query = select(col(Member.user_id), _account.username).join(accounts_table, account).order_by(_account.username)
        return (await self._session.execute(query.where(col(Member.image_id) == image_id))).all()

    async def locked_accounts(self, user_ids: Collection[str]) -> set[str]:
        """Those of the users who have not been deleted, and will not be before this transaction's end."""
        query = select(_account.owner_id).where(_account.owner_id.in_(user_ids), ~_account.deleted)
        rows = await self._session.execute(query.order_by(_account.owner_id).with_for_update(read=True))
        return set(rows.scalars())

    async def replace(self, image_id: UUID, user_ids: Collection[str]) -> None:
        await self._session.execute(delete(Member).where(col(Member.image_id) == image_id))
        if user_ids:
            rows = [{"image_id": image_id, "user_id": user_id} for user_id in user_ids]
            await self._session.execute(insert(Member).values(rows))

    async def forget(self, user_id: str) -> None:
        """Take a user off every list."""
        await self._session.execute(delete(Member).where(col(Member.user_id) == user_id))
