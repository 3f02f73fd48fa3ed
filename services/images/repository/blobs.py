"""How many images share each stored file, in PostgreSQL."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import case, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, delete
from sqlmodel.ext.asyncio.session import AsyncSession

from services.images.models import Blob


class BlobRepository:
    """How many images share each stored file, in the caller's transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def refer(self, sha256: str, *, key: str, size_bytes: int, now: datetime) -> str:
        """Add a reference; gives the key under which the file is kept, which is another one if it was known before.

        A file that was found rotten is not kept: the new one takes its place, and the sweep finds the old.
        """
        statement = insert(Blob).values(
            sha256=sha256, key=key, size_bytes=size_bytes, reference_count=1, verified_at=now
        )
        rotten = col(Blob.rotten_at).is_not(None)
        kept: str | None = await self._session.scalar(
            statement.on_conflict_do_update(
                index_elements=["sha256"],
                set_={
                    "reference_count": Blob.reference_count + 1,
                    "key": case((rotten, key), else_=col(Blob.key)),
                    "verified_at": case((rotten, now), else_=col(Blob.verified_at)),
                    "rotten_at": None,
                },
            ).returning(col(Blob.key))
        )
        return kept or key

    async def let_go(self, sha256: str) -> str | None:
        """Take a reference away; gives the key of the file that nobody needs any more, if this was the last one."""
        left = await self._session.scalar(
            update(Blob)
            .where(col(Blob.sha256) == sha256)
            .values(reference_count=Blob.reference_count - 1)
            .returning(col(Blob.reference_count))
        )
        if left != 0:
            return None
        key: str | None = await self._session.scalar(
            delete(Blob).where(col(Blob.sha256) == sha256).returning(col(Blob.key))
        )
        return key

    async def key_of(self, sha256: str) -> str | None:
        key: str | None = await self._session.scalar(select(col(Blob.key)).where(col(Blob.sha256) == sha256))
        return key

    async def get(self, sha256: str, *, for_update: bool = False) -> Blob | None:
        return await self._session.get(Blob, sha256, with_for_update=for_update or None, populate_existing=True)

    async def longest_unverified(self, after: tuple[datetime, str] | None, *, before: datetime) -> Blob | None:
        """The next blob in the order of their last verification, of those that are not known to be rotten."""
        place = tuple_(col(Blob.verified_at), col(Blob.sha256))
        query = select(Blob).where(col(Blob.verified_at) < before, col(Blob.rotten_at).is_(None))
        if after is not None:
            query = query.where(place > tuple_(*after))
        query = query.order_by(col(Blob.verified_at), col(Blob.sha256)).limit(1)
        return (await self._session.execute(query)).scalar_one_or_none()

    async def note_verified(self, sha256: str, *, key: str, now: datetime) -> bool:
        """Note that a blob's bytes have its digest; False if another file took its place meanwhile."""
        noted = await self._session.scalar(
            update(Blob)
            .where(col(Blob.sha256) == sha256, col(Blob.key) == key)
            .values(verified_at=now, rotten_at=None)
            .returning(col(Blob.sha256))
        )
        return noted is not None

    async def known_keys(self, keys: Collection[str]) -> set[str]:
        rows = await self._session.execute(select(col(Blob.key)).where(col(Blob.key).in_(keys)))
        return set(rows.scalars())

    async def any(self) -> bool:
        return await self._session.scalar(select(col(Blob.sha256)).limit(1)) is not None
