"""Routes of what differs between the clusters and the records, for administrators."""

from uuid import UUID

from fastapi import APIRouter, Request, Response

from libs.common.auth import AdminOnly, requires_scope
from libs.common.openapi import problems
from libs.common.operations_api import OperationView, location
from libs.common.pagination import PageQuery, page
from services.vms.api.views import vm_out
from services.vms.domain.drift import RESOLUTIONS, Kind
from services.vms.models import Drift
from services.vms.schemas import DifferenceOut, DriftList, DriftOut, Resolved, ResolveDrift
from services.vms.service import Drifts


def router(drifts: Drifts) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["drift"], dependencies=[requires_scope("vms")])

    @routes.get("/drift", responses=problems(_422="A sort or cursor is wrong"))
    async def list_drift(_admin: AdminOnly, request: PageQuery, http: Request, response: Response) -> DriftList:
        """Machines that changed or vanished behind Telar's back, and unknown ones that carry its tag; oldest first."""
        rows = await drifts.list(request)
        shown, cursor = page(
            rows, request, position=lambda drift: (drift.first_seen_at, drift.id), http=(http, response)
        )
        return DriftList(items=[_out(drift) for drift in shown], next_cursor=cursor)

    @routes.post(
        "/drift/{drift_id}/resolve",
        responses=problems(
            _404="No such difference", _409="It is so no more, cannot be resolved so, or a quota would be exceeded"
        ),
    )
    async def resolve_drift(admin: AdminOnly, drift_id: UUID, wish: ResolveDrift, response: Response) -> Resolved:
        """Believe the cluster (`adopt`), believe the record (`fix`), or give up what is left (`forget`)."""
        drift, vm, operation = await drifts.resolve(admin, drift_id, wish)
        if operation is not None:
            response.status_code = 202
            response.headers.update(location(operation))
        return Resolved(
            drift=_out(drift),
            action=wish.action,
            vm=None if vm is None else vm_out(vm),
            operation=None if operation is None else OperationView.of(operation).model_dump(mode="json"),
        )

    return routes


def _out(drift: Drift) -> DriftOut:
    return DriftOut(
        id=drift.id,
        kind=Kind(drift.kind),
        cluster=drift.cluster,
        vmid=drift.vmid,
        node=drift.node,
        name=drift.name,
        vm_id=drift.vm_id,
        differences=[DifferenceOut(**one) for one in drift.differences],
        actions=list(RESOLUTIONS[Kind(drift.kind)]),
        first_seen_at=drift.first_seen_at,
    )
