"""Routes of consoles: a ticket or a viewer's file, and the WebSocket that a ticket opens."""

import asyncio
import contextlib
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Response, WebSocket
from pydantic import BaseModel, ConfigDict
from starlette.websockets import WebSocketDisconnect

from libs.common.auth import CurrentUser, Principal, requires_scope
from libs.common.errors import Malformed, TelarError
from libs.common.openapi import problems
from libs.common.problems import from_exception, problem_response
from services.vms.errors import TicketRefused, ViewerUnfit
from services.vms.service.consoles import Consoles, Drawn
from services.vms.service.relay import DISPLAY_ENDED, VIEWER_LEFT

_NORMAL, _NOT_BINARY, _POLICY_VIOLATION, _SHUT_DOWN = 1000, 1003, 1008, 1012
_SUBPROTOCOL = "binary"
_CLOSING_S = 0.5
_LONGEST_TICKET = 128
SPICE_TYPE = "application/x-virt-viewer"
NO_STORE = {"cache-control": "no-store"}


class ConsoleType(StrEnum):
    VNC = "vnc"
    SPICE = "spice"


class ConsoleWish(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: ConsoleType = ConsoleType.VNC


class ConsoleOut(BaseModel):
    """A ticket of one use. noVNC opens `url` (beside this API's own host) and asks for no password."""

    type: ConsoleType
    ticket: str
    url: str
    subprotocol: str
    expires_at: datetime


def router(consoles: Consoles) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["vms"])
    _add_ticket(routes, consoles)

    @routes.websocket("/vms/{vm_id}/console/ws")
    async def console_socket(websocket: WebSocket, vm_id: str) -> None:
        """The machine's display, for who has a ticket: RFB without a password, in binary messages."""
        await _serve(websocket, consoles, vm_id)

    return routes


def _add_ticket(routes: APIRouter, consoles: Consoles) -> None:
    told: dict[int | str, dict[str, Any]] = {
        200: {"model": ConsoleOut, "description": "A ticket, or for SPICE a viewer's file", "content": {SPICE_TYPE: {}}}
    }

    @routes.post(
        "/vms/{vm_id}/console",
        dependencies=[requires_scope("vms")],
        response_class=Response,
        responses=told
        | problems(
            _404="No such machine, or it is not the caller's",
            _409="The machine is off, or has no SPICE display",
            _502="The cluster refused",
        ),
    )
    async def open_console(
        user: CurrentUser, vm_id: UUID, wish: Annotated[ConsoleWish | None, Body()] = None
    ) -> Response:
        """Ask for a console. A VNC ticket opens one WebSocket within 30 seconds, for this user and machine alone."""
        if wish is not None and wish.type is ConsoleType.SPICE:
            vm, told = await consoles.viewer_file(user, vm_id)
            lines = "".join(f"{name}={value}\n" for name, value in told.items())
            headers = {**NO_STORE, "content-disposition": f'attachment; filename="vm-{vm.number}.vv"'}
            return Response(f"[virt-viewer]\n{lines}", media_type=SPICE_TYPE, headers=headers)
        drawn = console_out(await consoles.draw(user, vm_id))
        return Response(drawn.model_dump_json(), media_type="application/json", headers=NO_STORE)


def console_out(drawn: Drawn) -> ConsoleOut:
    return ConsoleOut(
        type=ConsoleType.VNC,
        ticket=drawn.text,
        url=f"/api/v1/vms/{drawn.vm.id}/console/ws?ticket={drawn.text}",
        subprotocol=_SUBPROTOCOL,
        expires_at=drawn.expires_at,
    )


class _SocketViewer:
    """Implements `service.relay.Viewer` over a WebSocket; the server under it reads on only when a message is taken."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self.code: int | None = None

    async def read(self) -> bytes:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                self.code = message.get("code")
                return b""
            data: bytes | None = message.get("bytes")
            if data is None:
                raise ViewerUnfit("A console's messages are binary")
            if data:
                return data

    async def write(self, data: bytes) -> None:
        try:
            await self._websocket.send_bytes(data)
        except (WebSocketDisconnect, RuntimeError) as error:
            raise EOFError("the viewer left") from error


async def _serve(websocket: WebSocket, consoles: Consoles, vm_id: str) -> None:
    """Open what the ticket is for, before the handshake is answered; so a refusal is an ordinary problem."""
    try:
        visit, display = await consoles.redeem(*_asked(websocket, vm_id))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is answered as a problem
        response = problem_response(from_exception(error), instance=websocket.url.path)
        await websocket.send_denial_response(response)
        return
    viewer, reason, code = _SocketViewer(websocket), "the service is stopping", _SHUT_DOWN
    try:
        offered = websocket.scope["subprotocols"]
        await websocket.accept(_SUBPROTOCOL if _SUBPROTOCOL in offered else None)
        reason = await consoles.attend(visit, viewer, display)
        code = _NORMAL if reason in (VIEWER_LEFT, DISPLAY_ENDED) else _POLICY_VIOLATION
    except ViewerUnfit as error:
        reason, code = error.detail, _NOT_BINARY
    finally:
        await consoles.leave(visit, display, reason)
        if viewer.code is None:
            await _close(websocket, code, reason)


def _asked(websocket: WebSocket, vm_id: str) -> tuple[str, UUID, Principal | None]:
    caller = getattr(websocket.state, "identity", None)
    if isinstance(caller, TelarError):
        raise caller
    given = websocket.query_params.getlist("ticket")
    if len(given) != 1 or not given[0] or len(given[0]) > _LONGEST_TICKET:
        raise TicketRefused("Give the ticket of POST …/console once, as ?ticket=")
    try:
        return given[0], UUID(vm_id), caller
    except ValueError as error:
        raise Malformed("Not a machine's id") from error


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    """Say goodbye to a viewer that listens; one that does not read is cut off by the server."""
    with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
        async with asyncio.timeout(_CLOSING_S):
            await websocket.close(code, reason)
