"""From request to answer in the original's order: credentials, body, route, permission, node, parameters, work."""

import asyncio
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from libs.pvesim.access.identity import Identity, authenticate
from libs.pvesim.answers import Printer
from libs.pvesim.endpoints import Call, Endpoint, Router
from libs.pvesim.errors import CONNECT_FAILED, FORBIDDEN, NOT_IMPLEMENTED, SEND_FAILED, UNAUTHORIZED, PveError
from libs.pvesim.faults import Fault
from libs.pvesim.forms import merged, query_of, read_body
from libs.pvesim.lab import Lab
from libs.pvesim.params import validate
from libs.pvesim.wire import API_NODE

PREFIX = "/api2"
_PATH = re.compile(rf"{PREFIX}/(\w+)(/.*)?", re.DOTALL)
_METHODS = {"GET", "POST", "PUT", "DELETE"}
_TIMED_OUT = "Connection timed out"
_HTML_PAGE = b"<!DOCTYPE html><html><head><title>Proxmox</title></head><body>please wait</body></html>"


class Dispatcher:
    """The ASGI app behind `/api2/<format>`."""

    def __init__(self, lab: Lab, router: Router) -> None:
        self._lab = lab
        self._router = router
        self._printer = Printer(lab.settings)
        self._release = lab.settings.release
        self._late: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self.answer(request)
        await response(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        began = asyncio.get_running_loop().time()
        match = _PATH.fullmatch(request.scope["raw_path"].decode("latin-1").split("?", 1)[0])
        form, path = (match[1], match[2] or "/") if match is not None else ("json", "/")
        try:
            result = await self._perform(request, path)
            response = result if isinstance(result, Response) else self._printer.success(form, result)
        except PveError as failure:
            if failure.status == UNAUTHORIZED:
                delay = self._lab.clock.real(self._lab.settings.unauthorized_delay_s)
                await asyncio.sleep(max(0.0, began + delay - asyncio.get_running_loop().time()))
            response = self._printer.failure(form, failure)
        if request.method != "GET":
            await self._lab.store.durable()
        return response

    async def _perform(self, request: Request, path: str) -> Any:
        lab, method = self._lab, request.method
        if method not in _METHODS:
            raise PveError(f"method '{method}' not available", status=NOT_IMPLEMENTED, bare=True)
        found = self._router.find(method, path, self._release)
        if found is not None and found[0].permission.world:
            identity = Identity("")
        else:
            needs_csrf = method != "GET" and not (found is not None and found[0].upload)
            identity = authenticate(request, lab.office, lab.accounts, needs_csrf=needs_csrf)
        lab.calls[f"{method} {found[0].path if found else path}"] += 1
        if (struck := await self._strike(method, path)) is not None:
            return struck
        cut = lab.faults.call("gateway_timeout", method=method, path=path)
        if cut is not None and not cut.applied:
            await lab.clock.sleep(cut.seconds)
            raise PveError(cut.message or _TIMED_OUT, status=SEND_FAILED, bare=True)
        body = {} if found is not None and found[0].upload else await read_body(request, self._release)
        if found is None:
            raise PveError(f"Method '{method} {path}' not implemented", status=NOT_IMPLEMENTED)
        endpoint, in_path = found
        params = merged(in_path, query_of(request, self._release), body)
        if identity.is_token and not endpoint.allow_token:
            why = f"Permission check failed (URI '{path}' not available with API token, need proper ticket.\n)"
            raise PveError(why, status=FORBIDDEN)
        endpoint.permission.check(lab.access, identity.authid, params)
        api_node = request.scope.get("state", {}).get(API_NODE) or lab.nodes.local.name
        await self._route(endpoint, params, api_node)
        open_ended = endpoint.open_ended or endpoint.upload
        params = validate(endpoint.params, params, open_ended=open_ended, release=self._release)
        return await self._within_time(endpoint, Call(lab, identity, params, request, api_node), cut)

    async def _strike(self, method: str, path: str) -> Response | None:
        """Injected faults of the HTTP layer."""
        faults = self._lab.faults
        if (slow := faults.call("slow_call", method=method, path=path)) is not None:
            await self._lab.clock.sleep(slow.seconds)
        if faults.call("html", method=method, path=path) is not None:
            return Response(_HTML_PAGE, media_type="text/html")
        if faults.call("lock_timeout", method=method, path=path) is not None:
            vmid = re.search(r"/qemu/(\d+)", path)
            raise PveError(f"can't lock file '/var/lock/qemu-server/lock-{vmid[1] if vmid else 0}.conf' - got timeout")
        if (error := faults.call("error", method=method, path=path)) is not None:
            raise PveError(error.message or "injected error", status=error.status)
        return None

    async def _route(self, endpoint: Endpoint, params: dict[str, Any], api_node: str) -> None:
        """Send the call to its node: an unknown or dead one answers before any parameter is looked at."""
        if "node" not in params or "{node}" not in endpoint.path:
            return
        name = params["node"]
        if name == "localhost":
            name = params["node"] = api_node
        node = self._lab.nodes.by_name.get(name)
        if node is None and endpoint.on_node:
            reason = f"failed to get address info for: {name}: Name or service not known"
            raise PveError(f"hostname lookup '{name}' failed - {reason}")
        if node is not None and endpoint.on_node and not node.up:
            await self._lab.clock.sleep(self._lab.settings.dead_node_delay_s)
            raise PveError("No route to host", status=CONNECT_FAILED, bare=True)

    async def _within_time(self, endpoint: Endpoint, call: Call, cut: Fault | None) -> Any:
        """Run the handler; the caller waits for at most the proxy's 30 s, but the work goes on."""
        if endpoint.method == "GET" and cut is None:
            return await endpoint.handler(call)
        limit_s = cut.seconds if cut is not None else self._lab.settings.proxy_timeout_s
        work = asyncio.ensure_future(endpoint.handler(call))
        self._late.add(work)
        work.add_done_callback(self._forget)
        done, _ = await asyncio.wait({work}, timeout=None if endpoint.upload else self._lab.clock.real(limit_s))
        if not done or cut is not None:
            raise PveError(_TIMED_OUT, status=SEND_FAILED, bare=True)
        return work.result()

    def _forget(self, work: "asyncio.Future[Any]") -> None:
        self._late.discard(work)
        if not work.cancelled():
            work.exception()
