"""Routes of snapshots, and of what a machine used over time."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Path, Query, Response

from libs.common.auth import CurrentUser, requires_scope
from libs.common.openapi import problems
from services.vms.api.routes import BEGUN
from services.vms.api.views import begun
from services.vms.domain.history import Timeframe
from services.vms.domain.snapshots import NAME_PATTERN, SnapshotTree
from services.vms.schemas import MetricsOut, RollBack, SnapshotList, SnapshotOut, TakeSnapshot
from services.vms.service import Histories, Snapshots

_NOT_FOUND = "No such machine or snapshot, or it is not the caller's"
Name = Annotated[str, Path(pattern=NAME_PATTERN)]


def router(snapshots: Snapshots, histories: Histories) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["vms"], dependencies=[requires_scope("vms")])
    _add_snapshots(routes, snapshots)

    @routes.get("/vms/{vm_id}/metrics", responses=problems(_404="No such machine, or it is not the caller's"))
    async def get_vm_metrics(
        user: CurrentUser,
        vm_id: UUID,
        timeframe: Annotated[Timeframe, Query(description="How far back")] = Timeframe.HOUR,
    ) -> MetricsOut:
        """What the machine used over time; null where nothing was measured, such as while it was off."""
        history = await histories.of(user, vm_id, timeframe)
        return MetricsOut(timeframe=timeframe, times=list(history.times), **history.series)

    return routes


def _add_snapshots(routes: APIRouter, snapshots: Snapshots) -> None:
    refusals = problems(
        _404=_NOT_FOUND,
        _409="The machine is busy or in another state, the name is taken, the limit is reached, or its storage keeps"
        " no snapshots",
    )

    @routes.get("/vms/{vm_id}/snapshots", responses=refusals)
    async def list_snapshots(user: CurrentUser, vm_id: UUID) -> SnapshotList:
        """The machine's snapshots as a tree (`parent`), parents first; `current` is what the machine goes on from."""
        return snapshots_out(await snapshots.tree(user, vm_id))

    @routes.post("/vms/{vm_id}/snapshots", status_code=202, response_class=Response, responses=BEGUN | refusals)
    async def take_snapshot(user: CurrentUser, vm_id: UUID, wish: TakeSnapshot) -> Response:
        return begun(*await snapshots.take(user, vm_id, wish))

    @routes.post(
        "/vms/{vm_id}/snapshots/{name}/rollback", status_code=202, response_class=Response, responses=BEGUN | refusals
    )
    async def roll_back(
        user: CurrentUser, vm_id: UUID, name: Name, wish: Annotated[RollBack | None, Body()] = None
    ) -> Response:
        """Go back: what the machine did since is lost. It runs again if it ran (or as `start` says)."""
        start = None if wish is None else wish.start
        return begun(*await snapshots.roll_back(user, vm_id, name, start=start))

    @routes.delete(
        "/vms/{vm_id}/snapshots/{name}", status_code=202, response_class=Response, responses=BEGUN | refusals
    )
    async def delete_snapshot(user: CurrentUser, vm_id: UUID, name: Name) -> Response:
        return begun(*await snapshots.delete(user, vm_id, name))


def snapshots_out(tree: SnapshotTree) -> SnapshotList:
    children: dict[str | None, list[str]] = {}
    for one in tree.snapshots:
        children.setdefault(one.parent, []).append(one.name)
    return SnapshotList(
        items=[
            SnapshotOut(
                name=one.name,
                description=one.description,
                created_at=one.taken_at,
                parent=one.parent,
                children=children.get(one.name, []),
                includes_memory=one.includes_memory,
                current=one.name == tree.current,
                state=one.state,
            )
            for one in tree.snapshots
        ],
        current=tree.current,
    )
