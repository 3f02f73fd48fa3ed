"""HTTP as pveproxy speaks it, on uvicorn's h11 protocol: TLS, texts in the reason phrase, short-lived connections."""

import asyncio
import contextlib
import socket
from typing import Any

import h11
import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from libs.pvesim.tunnel import REASON_HEADER, Tunnel

API_NODE = "api_node"
_REQUESTS_PER_CONNECTION = 100
_CLOSE = (b"connection", b"close")
_GRACE_S = 2.0
_logger = structlog.get_logger()


class ReasonConnection(h11.Connection):
    """Moves the app's reason header into the status line: ASGI itself has no place for a reason phrase."""

    answered = 0

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        if isinstance(event, h11.Response):
            event = self._worded(event)
        return super().send_with_data_passthrough(event)

    def _worded(self, response: h11.Response) -> h11.Response:
        self.answered += 1
        reason = response.reason
        headers: list[tuple[bytes, bytes]] = []
        for name, value in response.headers:
            if name == REASON_HEADER:
                reason = value
            else:
                headers.append((name, value))
        if self.answered >= _REQUESTS_PER_CONNECTION and _CLOSE not in headers:
            headers.append(_CLOSE)
        return h11.Response(status_code=response.status_code, headers=headers, reason=reason)


class ReasonProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with a connection that can word its status line."""

    def __init__(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state)
        self.conn = ReasonConnection(h11.SERVER)

    def _should_upgrade(self) -> bool:
        return self.scope["method"] == "GET" and self._get_upgrade() == b"websocket"

    def handle_websocket_upgrade(self, event: h11.Request) -> None:  # noqa: ARG002  (the scope says it all)
        """Leave HTTP to the app: it may refuse with any answer, or take the connection over."""
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        tunnel = Tunnel(self.transport, self.conn.trailing_data[0])
        self.connections.add(tunnel)  # type: ignore[arg-type]  # has what the server needs of a connection
        task = self.loop.create_task(tunnel.run(self.app, dict(self.scope)))
        self.tasks.add(task)
        task.add_done_callback(lambda done: self._left(done, tunnel))

    def _left(self, task: "asyncio.Task[None]", tunnel: Tunnel) -> None:
        self.tasks.discard(task)
        self.connections.discard(tunnel)
        if not task.cancelled() and (defect := task.exception()) is not None:
            _logger.error("lab_tunnel_crashed", exc_info=defect)


class WireServer:
    """One TLS listener in the running event loop. It has no main loop of its own, so that an idle lab costs nothing.

    `node` is the node whose API this is; None is the cluster's own address. It can be closed and started again.
    """

    def __init__(
        self, app: ASGIApp, *, certificate: str, key: str, idle_timeout_s: float, node: str | None = None
    ) -> None:
        self._config = uvicorn.Config(
            app,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            timeout_keep_alive=max(1, round(idle_timeout_s)),
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
        )
        self._node = node
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    @property
    def listening(self) -> bool:
        return self._server is not None

    async def start(self, host: str, port: int) -> int:
        """Listen on `host`; returns the port, which the system chooses when `port` is 0."""
        if not self._config.loaded:
            self._config.load()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._protocol, host, port, ssl=self._config.ssl, backlog=2048, family=socket.AF_UNSPEC
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def _protocol(self) -> ReasonProtocol:
        return ReasonProtocol(config=self._config, server_state=self._state, app_state={API_NODE: self._node})

    async def aclose(self, grace_s: float = _GRACE_S) -> None:
        """Stop listening, let answers under way finish for a moment, then drop what is left."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        running = list(self._state.tasks)
        if running and grace_s:
            await asyncio.wait(running, timeout=grace_s)
        for task in list(self._state.tasks):
            task.cancel()
        for connection in list(self._state.connections):
            with contextlib.suppress(AttributeError):  # Python 3.11.2: a TLS transport closed twice cannot be aborted
                connection.transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                await self._server.wait_closed()
        self._server = None
