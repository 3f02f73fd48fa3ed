"""Routes of virtual machines: create, list, read, change, power, delete; templates, nodes and placement."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response

from libs.common.auth import AdminOnly, CurrentUser, Principal, requires_scope
from libs.common.auth.dependencies import bearer_token, current_principal
from libs.common.etag import IfMatch, set_etag
from libs.common.openapi import problems
from libs.common.operations_api import OperationView
from libs.common.pagination import PageQuery, page
from services.vms.api.nodes import add_nodes
from services.vms.api.templates import add_templates
from services.vms.api.views import begun, node_out, placement_out, vm_detail, vm_out
from services.vms.domain.states import Action, State
from services.vms.repository import VmFilter, sort_value
from services.vms.schemas import (
    CreateVm,
    NodeList,
    PlacementOut,
    PlacementRequest,
    UpdateVm,
    VmDetail,
    VmOut,
    VmPage,
)
from services.vms.service import Catalog, Nodes, Templates, Vms

PREFIX = "/api/v1"
_NO_NUL = "^[^\\x00]*$"
_NOT_FOUND = "No such machine, or it is not the caller's"
_AWAY = "No cluster answers"

Reader = Annotated[Principal, Depends(current_principal)]
"""A user, or another service of Telar."""


class BegunOut(OperationView):
    """An operation and the machine it works on."""

    vm: VmOut


BEGUN: dict[int | str, dict[str, Any]] = {202: {"model": BegunOut, "description": "Begun; follow Location"}}


class ListQuery:
    """What a list may be narrowed to."""

    def __init__(
        self,
        name: Annotated[str | None, Query(max_length=100, pattern=_NO_NUL, description="Part of the name")] = None,
        state: Annotated[State | None, Query()] = None,
        node: Annotated[str | None, Query(max_length=63, pattern=_NO_NUL)] = None,
    ) -> None:
        self.filter = VmFilter(name, state, node)


def router(vms: Vms, catalog: Catalog, templates: Templates, nodes: Nodes) -> APIRouter:
    """Every canonical route of the service's own."""
    routes = APIRouter(prefix=PREFIX, dependencies=[requires_scope("vms")])
    _add_reading(routes, vms)
    _add_changing(routes, vms)
    for action in Action:
        _add_action(routes, vms, action)
    _add_cluster(routes, vms, catalog)
    add_templates(routes, templates)
    add_nodes(routes, nodes)
    return routes


def _add_reading(routes: APIRouter, vms: Vms) -> None:
    @routes.get("/vms", tags=["vms"], responses=problems(_422="A filter, sort or cursor is wrong"))
    async def list_vms(
        principal: Reader, query: Annotated[ListQuery, Depends()], request: PageQuery, http: Request, response: Response
    ) -> VmPage:
        """The caller's machines (everyone's for administrators), newest first."""
        rows = await vms.list(principal, query.filter, request)
        shown, cursor = page(rows, request, position=lambda vm: sort_value(vm, request.sort), http=(http, response))
        return VmPage(items=[vm_out(vm) for vm in shown], next_cursor=cursor)

    @routes.get("/vms/{vm_id}", tags=["vms"], responses=problems(_404=_NOT_FOUND))
    async def get_vm(principal: Reader, vm_id: UUID, response: Response) -> VmDetail:
        """The record, and what the cluster and the guest agent tell at this moment."""
        vm = await vms.get(principal, vm_id)
        set_etag(response, vm.version)
        return vm_detail(vm, await vms.live(vm))


def _add_changing(routes: APIRouter, vms: Vms) -> None:
    @routes.post(
        "/vms",
        status_code=202,
        tags=["vms"],
        response_class=Response,
        responses=BEGUN
        | problems(
            _409="A quota would be exceeded, or no node fits: `nodes` tells why not",
            _422="A field is wrong, or no template is like that",
            _503=_AWAY,
        ),
    )
    async def create_vm(user: CurrentUser, wish: CreateVm, request: Request) -> Response:
        """Make a machine from a template; what is left out is as in the template."""
        return begun(*await vms.create(user.user_id, wish, bearer=bearer_token(request.headers.raw)))

    changed = problems(
        _404=_NOT_FOUND,
        _409="The machine's state does not allow it, it is busy, a disk would shrink, or a quota would be exceeded",
        _412="The machine has changed",
    )

    @routes.patch("/vms/{vm_id}", tags=["vms"], response_class=Response, responses=BEGUN | changed)
    async def update_vm(user: CurrentUser, vm_id: UUID, change: UpdateVm, if_match: IfMatch = None) -> Response:
        """Change name, cores, memory or disk; 200 with the machine if it is so already."""
        vm, operation = await vms.update(user, vm_id, change, if_match=if_match)
        if operation is None:
            return Response(vm_out(vm).model_dump_json(), media_type="application/json")
        return begun(vm, operation)

    @routes.delete("/vms/{vm_id}", status_code=202, tags=["vms"], response_class=Response, responses=BEGUN | changed)
    async def delete_vm(user: CurrentUser, vm_id: UUID, if_match: IfMatch = None) -> Response:
        """Remove a machine with its disks, after whatever is under way on it."""
        return begun(*await vms.delete(user, vm_id, if_match=if_match))


def _add_action(routes: APIRouter, vms: Vms, action: Action) -> None:
    async def act(user: CurrentUser, vm_id: UUID) -> Response:
        return begun(*await vms.act(user, vm_id, action))

    routes.add_api_route(
        f"/vms/{{vm_id}}/{action}",
        act,
        methods=["POST"],
        status_code=202,
        tags=["vms"],
        name=f"{action}_vm",
        summary=f"{action.capitalize()} the machine",
        response_class=Response,
        responses=BEGUN | problems(_404=_NOT_FOUND, _409="The machine's state does not allow it, or it is busy"),
    )


def _add_cluster(routes: APIRouter, vms: Vms, catalog: Catalog) -> None:
    @routes.get("/nodes", tags=["nodes"], responses=problems(_503=_AWAY))
    async def list_nodes(_admin: AdminOnly) -> NodeList:
        return NodeList(items=[node_out(cluster, found) for cluster, found in await catalog.nodes()])

    @routes.post("/placements", tags=["nodes"], responses=problems(_422="No template is like that", _503=_AWAY))
    async def place(_user: CurrentUser, wish: PlacementRequest, request: Request) -> PlacementOut:
        """Where a machine would go, without making it: every node fits, or says why not."""
        return placement_out(await vms.dry_run(wish, ha=wish.ha, bearer=bearer_token(request.headers.raw)))
