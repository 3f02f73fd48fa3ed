"""Which nodes are under maintenance, in PostgreSQL."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from services.vms.models import Maintenance

_MAINTAINED = select(col(Maintenance.node), col(Maintenance.reason)).where(
    col(Maintenance.cluster) == bindparam("cluster")
)


class NodeRepository:
    """In the caller's transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def maintained(self, cluster: str) -> Mapping[str, str]:
        """The cluster's nodes under maintenance, with the reason that was given."""
        rows = await self._session.execute(_MAINTAINED, {"cluster": cluster})
        return {row.node: row.reason for row in rows}

    async def maintain(self, cluster: str, node: str, *, reason: str, by: str, now: datetime) -> None:
        setting = insert(Maintenance).values(cluster=cluster, node=node, reason=reason, set_by=by, since=now)
        await self._session.execute(
            setting.on_conflict_do_update(
                index_elements=["cluster", "node"], set_={"reason": reason, "set_by": by, "since": now}
            )
        )

    async def release(self, cluster: str, node: str) -> None:
        await self._session.execute(
            delete(Maintenance).where(col(Maintenance.cluster) == cluster, col(Maintenance.node) == node)
        )
