"""Routes of nodes' maintenance."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from libs.common.auth import AdminOnly
from libs.common.openapi import problems
from services.vms.schemas import MaintenanceWish
from services.vms.schemas.fields import ClusterName
from services.vms.service import Nodes

NodePath = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
ClusterQuery = Annotated[ClusterName | None, Query(description="Needed where several clusters have such a node")]


def add_nodes(routes: APIRouter, nodes: Nodes) -> None:
    refusals = problems(_404="No such node, or several clusters have one of that name", _503="No cluster answers")

    @routes.put("/nodes/{node}/maintenance", status_code=204, tags=["nodes"], responses=refusals)
    async def begin_maintenance(
        admin: AdminOnly, node: NodePath, wish: MaintenanceWish | None = None, cluster: ClusterQuery = None
    ) -> Response:
        """Place nothing new on a node; what runs there stays."""
        await nodes.maintain(admin, node, cluster=cluster, reason="" if wish is None else wish.reason)
        return Response(status_code=204)

    @routes.delete("/nodes/{node}/maintenance", status_code=204, tags=["nodes"], responses=refusals)
    async def end_maintenance(_admin: AdminOnly, node: NodePath, cluster: ClusterQuery = None) -> Response:
        """Let machines be placed on it again."""
        await nodes.release(node, cluster=cluster)
        return Response(status_code=204)
