"""Nodes that an administrator takes out of service: nothing new is placed there, what runs there stays."""

from libs.common.auth import Principal
from libs.common.uow import UnitOfWorkFactory
from services.vms.errors import NodeUnknown
from services.vms.repository import NodeRepository
from services.vms.service.fleet import Fleet

_AGE_S = 30.0


class Nodes:
    """Use cases of nodes."""

    def __init__(self, uow: UnitOfWorkFactory, fleet: Fleet) -> None:
        self._uow = uow
        self._fleet = fleet

    async def maintain(self, admin: Principal, node: str, *, cluster: str | None, reason: str) -> None:
        """Keep new machines away from a node, until it is released; again changes the reason."""
        name = await self._cluster_of(node, cluster)
        async with self._uow() as uow:
            await NodeRepository(uow.session).maintain(name, node, reason=reason, by=admin.user_id, now=uow.clock.now())
            await uow.commit()

    async def release(self, node: str, *, cluster: str | None) -> None:
        """Let machines be placed on a node again."""
        name = await self._cluster_of(node, cluster)
        async with self._uow() as uow:
            await NodeRepository(uow.session).release(name, node)
            await uow.commit()

    async def _cluster_of(self, node: str, cluster: str | None) -> str:
        """The cluster that has a node; raises NodeUnknown, also if several have one of that name and none is given."""
        self._fleet.require_any()
        wanted = [one for one in self._fleet if cluster in (None, one.name)]
        having = [one.name for one in wanted if node in (await one.inventory(max_age_s=_AGE_S)).nodes]
        if not having:
            raise NodeUnknown(f"No cluster shows a node {node}" if wanted else f"There is no cluster {cluster}")
        if len(having) > 1:
            raise NodeUnknown(f"Several clusters have a node {node}; say ?cluster= with one of {', '.join(having)}")
        return having[0]
