"""The lab over HTTPS: the ASGI app, and the server that an embedding process starts in its own event loop."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.pvesim.answers import FORMATS
from libs.pvesim.dispatch import PREFIX, Dispatcher
from libs.pvesim.endpoints import Router
from libs.pvesim.faults import FaultDesk
from libs.pvesim.lab import Lab
from libs.pvesim.node_ports import NodePorts
from libs.pvesim.rooms import ROOMS
from libs.pvesim.seed import TOKEN_ID
from libs.pvesim.settings import LabSettings
from libs.pvesim.wire import WireServer


class _Doors:
    """What is mounted before the lab is open: hands requests to the apps that its opening makes."""

    def __init__(self) -> None:
        self.api: ASGIApp | None = None
        self.sim: ASGIApp | None = None

    async def enter_api(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.api is None:
            raise RuntimeError("the lab is not open: run the app with its lifespan")
        await self.api(scope, receive, send)

    async def enter_sim(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.sim is None:
            raise RuntimeError("the lab is not open: run the app with its lifespan")
        await self.sim(scope, receive, send)


def create_app(settings: LabSettings) -> Starlette:
    """The ASGI app; its lifespan opens the lab (then `app.state.lab`) and closes it.

    Only `serve` speaks Proxmox VE's HTTP faithfully: error texts travel in the reason phrase, which ASGI does not know.
    """
    doors = _Doors()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        lab = await Lab.open(settings)
        app.state.lab = lab
        doors.api = Dispatcher(lab, Router(*ROOMS))
        doors.sim = Starlette(routes=FaultDesk(lab).routes())
        try:
            yield
        finally:
            await lab.aclose()

    apis = [Mount(f"{PREFIX}/{form}", doors.enter_api) for form in FORMATS]
    return Starlette(routes=[*apis, Mount("/", doors.enter_sim)], lifespan=lifespan)


class RunningLab:
    """A lab that serves. `token_secret` opens the API for `token_id`; `fingerprint` is the certificate's SHA-256.

    `node_ports` are the ports of the nodes' own APIs, where the settings ask for them.
    """

    def __init__(self, lab: Lab, host: str, port: int, node_ports: dict[str, int], stack: AsyncExitStack) -> None:
        self.lab = lab
        self.host = host
        self.port = port
        self.node_ports = node_ports
        self._stack = stack

    @property
    def url(self) -> str:
        return self._url(self.port)

    def url_of(self, node: str) -> str:
        """Where a node's own API answers."""
        return self._url(self.node_ports[node])

    def _url(self, port: int) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{port}"

    @property
    def fingerprint(self) -> str:
        return self.lab.certificate.fingerprint

    @property
    def ca_path(self) -> Path:
        return self.lab.certificate.certificate_path

    @property
    def token_id(self) -> str:
        return TOKEN_ID

    @property
    def token_secret(self) -> SecretStr:
        return self.lab.token_secret

    @property
    def root_password(self) -> SecretStr:
        return self.lab.root_password

    async def aclose(self) -> None:
        """Stop listening, interrupt running tasks, write everything down."""
        await self._stack.aclose()


async def serve(settings: LabSettings) -> RunningLab:
    """Open the lab and serve it over TLS in the running event loop; port 0 takes a free port."""
    async with AsyncExitStack() as stack:
        app = create_app(settings)
        await stack.enter_async_context(app.router.lifespan_context(app))
        lab: Lab = app.state.lab

        def listener(node: str | None = None) -> WireServer:
            return WireServer(
                app,
                certificate=str(lab.certificate.certificate_path),
                key=str(lab.certificate.key_path),
                idle_timeout_s=settings.idle_timeout_s,
                node=node,
            )

        server = listener()
        port = await server.start(settings.host, settings.port)
        stack.push_async_callback(server.aclose)
        nodes = NodePorts(lab, listener)
        await nodes.open()
        stack.push_async_callback(nodes.aclose)
        return RunningLab(lab, settings.host, port, nodes.ports, stack.pop_all())
    raise AssertionError("unreachable: the stack is handed over")
