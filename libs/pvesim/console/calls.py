"""The console calls: VNC proxies of machines and node shells, and the WebSockets that lead to them."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from libs.pvesim.access.permissions import WORLD, needs
from libs.pvesim.console.desk import PORTS, Proxy, new_password
from libs.pvesim.console.display import Display
from libs.pvesim.console.rfb import RfbSession
from libs.pvesim.console.websocket import FrameStream, accept, check_handshake, wants_upgrade
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import UNAUTHORIZED, PveError
from libs.pvesim.params import boolean, integer, one_of, split_list, text
from libs.pvesim.tasks import TaskRun
from libs.pvesim.tunnel import Takeover, Tunnel, can_take_over

routes = Routes()
CONSOLE = needs("/vms/{vmid}", "VM.Console")
SHELL = needs("/nodes/{node}", "Sys.Console")
SHELL_PARAMS = {"cmd": one_of("ceph_install", "login", "upgrade", default="login"), "cmd-opts": text(requires="cmd")}
_VM = "/nodes/{node}/qemu/{vmid}"
_TICKET = "PVEVNC"
_SKEW_S = 20
_WITH_PASSWORD = re.compile(rf"(?s).{{8}}:({_TICKET}:.*)")
_WEBSOCKET = {"port": integer(PORTS.start, PORTS.stop - 1, required=True), "vncticket": text(512, required=True)}


def open_proxy(call: Call, task_type: str, password: str | None = None) -> tuple[Proxy, dict[str, Any]]:
    """Take a port on the API node, start the task that waits there, and sign a ticket; returns proxy and answer.

    Where releases bind tickets to ports, a ticket begins with the password.
    """
    lab, desk = call.lab, call.lab.consoles
    vmid = call.get("vmid")
    path = f"/nodes/{call.node}" if vmid is None else f"/vms/{vmid}"
    proxy = desk.open(call.api_node, path)
    bound = lab.settings.release.binds_console_tickets and password is not None
    ticket = lab.office.ticket(call.identity.authid, prefix=_TICKET, path=f"{path}:{proxy.port}" if bound else path)

    async def worker(run: TaskRun) -> None:
        run.log(f"starting {task_type} {run.task.upid}")
        await desk.attend(run, proxy, lab.settings.console_accept_s)

    upid = lab.tasks.start(call.api_node, task_type, str(vmid or ""), call.identity.authid, worker)
    answer = {
        "user": call.identity.authid,
        "ticket": f"{password}:{ticket}" if bound else ticket,
        "port": str(proxy.port),
        "upid": upid,
    }
    return proxy, answer


def _show(call: Call, find: Callable[[], Display | None], task_type: str, password: str | None) -> dict[str, Any]:
    """Open a proxy to a display. Without a password of its own the ticket is one: VNC uses its first characters."""
    lab = call.lab
    proxy, answer = open_proxy(call, task_type, password)
    websocket = call.flag("websocket")

    async def speak(stream: FrameStream) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + lab.settings.console_password_s
        display = find()
        # Without `websocket` the port expects TLS, which the WebSocket bridge cannot speak.
        if display is None or not websocket:
            raise PveError(f"Failed to run {task_type}.")
        await RfbSession(stream, display, password or answer["ticket"], lambda: loop.time() < ends).run()

    proxy.speak = speak
    answer["cert"] = lab.certificate.pem
    return answer if password is None else answer | {"password": password}


@routes.post(f"{_VM}/vncproxy", {"websocket": boolean(), "generate-password": boolean(0)}, CONSOLE, on_node=False)
async def vncproxy(call: Call) -> dict[str, Any]:
    """A display's proxy on the API node that was called; it opens whether or not the machine runs."""
    vm = call.lab.vms.configured(call.node, call.vmid)
    drawn = call.lab.settings.release.binds_console_tickets or call.flag("generate-password")
    password = new_password() if drawn else None
    return _show(call, lambda: call.lab.consoles.display(call.node, vm.vmid), "vncproxy", password)


@routes.post(
    "/nodes/{node}/vncshell",
    {**SHELL_PARAMS, "height": integer(16, 2160), "width": integer(16, 4096), "websocket": boolean()},
    SHELL,
    on_node=False,
)
async def vncshell(call: Call) -> dict[str, Any]:
    refuse_tokens(call)
    node = call.lab.nodes.known(call.node)
    password = new_password() if call.lab.settings.release.has((9, 1)) else None
    return _show(call, lambda: call.lab.consoles.shell(node), "vncshell", password)


def refuse_tokens(call: Call) -> None:
    """Node shells insist on the name of a user."""
    if call.identity.is_token:
        raise PveError(f"value '{call.identity.authid}' does not look like a valid user name")


def proves(call: Call, ticket: str, authid: str, path: str, port: int | None) -> bool:
    """Whether a console ticket was made for this identity and path (and port, where releases bind it)."""
    office, lifetime_s = call.lab.office, call.lab.settings.console_ticket_s
    match = _WITH_PASSWORD.fullmatch(ticket)
    if match is not None:
        ticket, path = match[1], f"{path}:{port}"
    return office.proves(ticket, authid, prefix=_TICKET, path=path, lifetime_s=lifetime_s, skew_s=_SKEW_S)


def _check_ticket(call: Call, path: str) -> None:
    if not proves(call, call.get("vncticket"), call.identity.authid, path, call.get("port")):
        raise PveError(f"permission denied - invalid {_TICKET} ticket", status=UNAUTHORIZED)


class _Bridge(Takeover):
    """Leads a WebSocket to a proxy. Where nobody listens, the connection closes without an answer."""

    def __init__(self, request: Request, proxy: Proxy | None) -> None:
        super().__init__()
        self._request = request
        self._proxy = proxy

    async def speak(self, tunnel: Tunnel) -> None:
        if self._proxy is not None:
            await self._proxy.converse(accept(self._request, tunnel))


def _bridge(call: Call, path: str) -> Any:
    """The port, or with an upgrade the way to what listens there."""
    if not wants_upgrade(call.request) or not can_take_over(call.request.scope):
        return {"port": str(call.get("port"))}
    check_handshake(call.request)
    return _Bridge(call.request, call.lab.consoles.take(call.api_node, call.get("port"), path))


@routes.get(f"{_VM}/vncwebsocket", _WEBSOCKET, CONSOLE, on_node=False)
async def vncwebsocket(call: Call) -> Any:
    _check_ticket(call, f"/vms/{call.vmid}")
    call.lab.vms.configured(call.node, call.vmid)
    return _bridge(call, f"/vms/{call.vmid}")


@routes.get("/nodes/{node}/vncwebsocket", _WEBSOCKET, SHELL, on_node=False)
async def shell_websocket(call: Call) -> Any:
    _check_ticket(call, f"/nodes/{call.node}")
    return _bridge(call, f"/nodes/{call.node}")


@routes.post(
    "/access/vncticket",
    {
        "authid": text(64, required=True),
        "path": text(64, required=True),
        "port": integer(),
        "privs": text(64, required=True),
        "vncticket": text(required=True),
    },
    WORLD,
    since=(9, 1),
)
async def verify_ticket(call: Call) -> None:
    """What terminals ask to know their user: whether the ticket is good and the privileges are there."""
    authid, path = call.get("authid"), call.get("path")
    allowed = call.lab.access.allows(authid, path, tuple(split_list(call.get("privs"))))
    if not allowed or not proves(call, call.get("vncticket"), authid, path, call.get("port")):
        raise PveError(f"permission denied - invalid {_TICKET} ticket", status=UNAUTHORIZED)
