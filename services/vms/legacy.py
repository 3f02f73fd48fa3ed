"""The routes of two older programs: `virtual-machines` with integer ids, and `/vm` with multipart forms."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Form, Path, Request, Response
from pydantic import ValidationError

from libs.common.auth import CurrentUser, requires_scope
from libs.common.errors import FieldError, Invalid
from libs.common.etag import IfMatch, set_etag
from libs.common.operations import Operation
from libs.common.operations_api import OperationView, location
from libs.common.pagination import PageQuery, page
from services.vms.domain.states import Action, State, older_status
from services.vms.models import Vm
from services.vms.repository import VmFilter, sort_value
from services.vms.schemas import CreateOlderVm, CreateVm, OlderConsole, OlderMachine, OlderVm, UpdateOlderVm, UpdateVm
from services.vms.service import Consoles, Vms
from services.vms.service.access import Reference
from services.vms.service.machines import Live

_MAX_INTEGER = 2**31 - 1
_WISHED: Mapping[str, Action] = {
    "running": Action.START,
    "enabled": Action.START,
    "started": Action.START,
    "start": Action.START,
    "active": Action.START,
    "stopped": Action.SHUTDOWN,
    "disabled": Action.SHUTDOWN,
    "stop": Action.SHUTDOWN,
    "inactive": Action.SHUTDOWN,
    "paused": Action.PAUSE,
    "pause": Action.PAUSE,
}
_CONTROLS: Mapping[str, Action] = {
    "start": Action.START,
    "shutdown": Action.SHUTDOWN,
    "pause": Action.PAUSE,
}

Cores = Annotated[int, Form(ge=1, le=512)]
Memory = Annotated[int, Form(ge=128, le=16_777_216, description="MiB")]
Integer = Annotated[int, Path(ge=1, le=_MAX_INTEGER)]


def router(vms: Vms, consoles: Consoles) -> APIRouter:
    """Both programs' routes, on the same use cases as the canonical ones."""
    routes = APIRouter(tags=["older clients"], dependencies=[requires_scope("vms")])
    _add_virtual_machines(routes, vms)
    _add_vm(routes, vms)
    for control, action in _CONTROLS.items():
        _add_control(routes, vms, control, action)
    _add_connect(routes, vms, consoles)
    return routes


def _reference(vm_id: str) -> Reference:
    """`virtual-machines` counts by the record's number; VMIDs and Telar's own ids are understood, too."""
    if vm_id.isascii() and vm_id.isdigit() and int(vm_id) <= _MAX_INTEGER:
        return int(vm_id), False
    try:
        return UUID(vm_id)
    except ValueError as error:
        raise Invalid("A machine's id is a number", errors=[FieldError("/path/vm_id", "not a number")]) from error


VmId = Annotated[str, Path(max_length=40)]


def _add_virtual_machines(routes: APIRouter, vms: Vms) -> None:
    base = "/api/v1/virtual-machines"

    @routes.post(f"{base}/", status_code=202)
    async def create_virtual_machine(user: CurrentUser, wish: CreateOlderVm, response: Response) -> OlderVm:
        """`POST /api/v1/vms` with `ram`, `disk` and `os`; the answer is the machine, with its operation inside."""
        asked = CreateVm(name=wish.name, os_type=wish.os, cores=wish.cores, memory_mib=wish.ram, disk_gib=wish.disk)
        vm, operation = await vms.create(user.user_id, asked)
        response.headers.update(location(operation))
        return _older(vm, operation)

    @routes.get(f"{base}/")
    async def list_virtual_machines(
        user: CurrentUser, request: PageQuery, http: Request, response: Response
    ) -> list[OlderVm]:
        """An array, as the older program gave it; `Link` leads to the next page."""
        rows = await vms.list(user, VmFilter(), request)
        shown, _ = page(rows, request, position=lambda vm: sort_value(vm, request.sort), http=(http, response))
        return [_older(vm) for vm in shown]

    @routes.get(f"{base}/{{vm_id}}")
    async def get_virtual_machine(user: CurrentUser, vm_id: VmId, response: Response) -> OlderVm:
        vm = await vms.get(user, _reference(vm_id))
        set_etag(response, vm.version)
        return _older(vm)

    @routes.put(f"{base}/{{vm_id}}")
    async def put_virtual_machine(
        user: CurrentUser, vm_id: VmId, change: UpdateOlderVm, response: Response, if_match: IfMatch = None
    ) -> OlderVm:
        """Change sizes and name, or the status (`running`, `stopped`, `paused`); 202 while it is being done."""
        reference = _reference(vm_id)
        vm = await vms.get(user, reference)
        operation = await _apply(vms, user, reference, vm, change, if_match)
        if operation is not None:
            response.status_code = 202
            response.headers.update(location(operation))
        return _older(vm, operation)

    @routes.delete(f"{base}/{{vm_id}}", status_code=202)
    async def delete_virtual_machine(
        user: CurrentUser, vm_id: VmId, response: Response, if_match: IfMatch = None
    ) -> OlderVm:
        vm, operation = await vms.delete(user, _reference(vm_id), if_match=if_match)
        response.headers.update(location(operation))
        return _older(vm, operation)


async def _apply(
    vms: Vms, user: CurrentUser, reference: Reference, vm: Vm, change: UpdateOlderVm, if_match: str | None
) -> Operation | None:
    """Begin what a PUT asks for. Sizes and status at once are refused: only one operation runs at a time."""
    if change.os is not None and change.os.lower() not in (vm.os_type, vm.template.lower()):
        raise Invalid("The operating system of a machine cannot be changed; make another machine")
    resized = UpdateVm(name=change.name, cores=change.cores, memory_mib=change.ram, disk_gib=change.disk, restart=False)
    wished = (change.status or "").lower()
    if wished in ("", vm.state, older_status(State(vm.state))):
        _, operation = await vms.update(user, reference, resized, if_match=if_match)
        return operation
    action = _WISHED.get(wished)
    if action is None:
        raise Invalid("status is one of running, stopped, paused", errors=[FieldError("/body/status", "not a status")])
    wanted = resized.model_dump(exclude_none=True, exclude={"restart"})
    if any(value != getattr(vm, name) for name, value in wanted.items()):
        raise Invalid("Change the size and the status one after the other")
    if action is Action.START and vm.state == State.PAUSED:
        action = Action.RESUME
    _, operation = await vms.act(user, reference, action, if_match=if_match)
    return operation


def _add_vm(routes: APIRouter, vms: Vms) -> None:
    @routes.post("/vm", status_code=202)
    async def create_vm_form(
        user: CurrentUser,
        response: Response,
        userid: Annotated[str, Form(min_length=1, max_length=100)],
        vm_name: Annotated[str, Form(min_length=1, max_length=100)],
        os_type: Annotated[str, Form(min_length=1, max_length=100)],
        disksize: Annotated[int | None, Form(ge=10, le=500, description="GiB")] = None,
        memory: Memory | None = None,
        cores: Cores | None = None,
        ssh_pub_key: Annotated[str | None, Form(max_length=16_384)] = None,
    ) -> OlderMachine:
        """Make a machine for `userid`, who is the caller unless an administrator calls."""
        owner_id = await vms.owner(user, userid)
        fields = {"name": vm_name, "os_type": os_type, "disk_gib": disksize, "memory_mib": memory, "cores": cores}
        vm, operation = await vms.create(owner_id, _checked(**fields, ssh_public_key=ssh_pub_key or None))
        response.headers.update(location(operation))
        return await _machine(vms, vm, operation)

    @routes.get("/vm/{vm_id}")
    async def get_vm_by_vmid(user: CurrentUser, vm_id: Integer) -> OlderMachine:
        vm = await vms.get(user, (vm_id, True))
        return await _machine(vms, vm, None, await vms.live(vm))

    @routes.post("/vm/update/{vm_id}", status_code=202)
    async def update_vm_form(
        user: CurrentUser,
        vm_id: Integer,
        response: Response,
        disksize: Annotated[int | None, Form(ge=10, le=500, description="GiB; only grows")] = None,
        memory: Memory | None = None,
        cores: Cores | None = None,
    ) -> OlderMachine:
        """Change the sizes and restart the machine, so that they take effect."""
        change = UpdateVm(disk_gib=disksize, memory_mib=memory, cores=cores, restart=True)
        vm, operation = await vms.update(user, (vm_id, True), change, if_match=None)
        if operation is None:
            response.status_code = 200
        else:
            response.headers.update(location(operation))
        return await _machine(vms, vm, operation)

    @routes.post("/control-vm/{vm_id}/delete", status_code=202)
    async def control_vm_delete(user: CurrentUser, vm_id: Integer, response: Response) -> OlderMachine:
        vm, operation = await vms.delete(user, (vm_id, True), if_match=None)
        response.headers.update(location(operation))
        return await _machine(vms, vm, operation)


def _add_control(routes: APIRouter, vms: Vms, control: str, action: Action) -> None:
    async def act(user: CurrentUser, vm_id: Integer, response: Response) -> OlderMachine:
        vm = await vms.get(user, (vm_id, True))
        wakes = action is Action.START and vm.state == State.PAUSED
        vm, operation = await vms.act(user, vm.id, Action.RESUME if wakes else action)
        response.headers.update(location(operation))
        return await _machine(vms, vm, operation)

    path = f"/control-vm/{{vm_id}}/{control}"
    routes.add_api_route(path, act, methods=["POST"], status_code=202, name=f"control_vm_{control}")


def _add_connect(routes: APIRouter, vms: Vms, consoles: Consoles) -> None:
    @routes.post("/vm/connect/{vm_id}")
    async def connect_vm_form(
        user: CurrentUser,
        vm_id: Integer,
        response: Response,
        type: Annotated[Literal["vnc", "spice"], Form()] = "vnc",  # noqa: A002 - the form's own word
    ) -> OlderConsole:
        """A VNC ticket for the WebSocket at `url`, or what a SPICE viewer's file says."""
        vm = await vms.get(user, (vm_id, True))
        response.headers["cache-control"] = "no-store"
        shown = {"vm_id": vm.vmid, "vm_name": vm.name, "node": vm.node, "type": type}
        if type == "spice":
            _, told = await consoles.viewer_file(user, vm.id)
            return OlderConsole(**shown, viewer_file=dict(told))
        drawn = await consoles.draw(user, vm.id)
        url = f"/api/v1/vms/{vm.id}/console/ws?ticket={drawn.text}"
        return OlderConsole(**shown, ticket=drawn.text, url=url, expires_at=drawn.expires_at)


def _checked(**fields: Any) -> CreateVm:
    """Bring form fields under the canonical request's rules; raises Invalid."""
    try:
        return CreateVm(**fields)
    except ValidationError as error:
        wrong = [FieldError("/body/" + "/".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
        raise Invalid("A field of the form is not valid", errors=wrong) from error


def _view(operation: Operation | None) -> dict[str, Any] | None:
    return None if operation is None else OperationView.of(operation).model_dump(mode="json")


def _older(vm: Vm, operation: Operation | None = None) -> OlderVm:
    return OlderVm(
        id=vm.number or 0,
        name=vm.name,
        cores=vm.cores,
        ram=vm.memory_mib,
        disk=vm.disk_gib,
        os=vm.os_type,
        status=older_status(State(vm.state)),
        state=State(vm.state),
        owner_id=vm.owner_id,
        vm_id=vm.vmid,
        uuid=vm.id,
        node=vm.node,
        created_at=vm.created_at,
        updated_at=vm.updated_at,
        operation=_view(operation),
    )


async def _machine(vms: Vms, vm: Vm, operation: Operation | None, live: Live | None = None) -> OlderMachine:
    return OlderMachine(
        vm_id=vm.vmid,
        vm_name=vm.name,
        userid=await vms.userid(vm),
        owner_id=vm.owner_id,
        status=older_status(State(vm.state)),
        state=State(vm.state),
        os_type=vm.os_type,
        node=vm.node,
        cores=vm.cores,
        memory=vm.memory_mib,
        disksize=vm.disk_gib,
        ip_addresses=list(live.addresses) if live is not None and live.addresses else vm.addresses,
        id=vm.id,
        number=vm.number or 0,
        created_at=vm.created_at,
        operation=_view(operation),
    )
