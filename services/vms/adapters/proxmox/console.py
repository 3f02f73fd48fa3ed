"""A machine's display on a cluster: a VNC proxy is asked for and joined at once, on the same API node."""

import logging
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from services.vms.adapters.proxmox import parsing
from services.vms.adapters.proxmox.calls import machine_path
from services.vms.adapters.proxmox.connection import require_pinned, trust
from services.vms.adapters.proxmox.failures import unanswered
from services.vms.adapters.proxmox.session import Session
from services.vms.domain import rfb
from services.vms.errors import DisplayRefused, NoSpiceDisplay, ProxmoxRefused, ProxmoxUnavailable
from services.vms.settings import ClusterSettings

_FRAME_BYTES = 64 * 1024
"""pveproxy drops a connection with a frame of more than 128 KiB."""
_LARGEST_FRAME = 256 * 1024
_FRAMES_AHEAD = 4
_KEYS = ("type", "title", "host", "proxy", "tls-port", "host-subject", "ca", "password", "secure-attention")
_SWITCHES = ("toggle-fullscreen", "release-cursor", "delete-this-file")

_log = structlog.get_logger()


class VncDisplay:
    """Implements `ports.Display` over pveproxy's WebSocket. `ahead` was read with the handshake."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ahead = b""

    async def log_in(self, password: str) -> None:
        self._ahead = await rfb.hold(rfb.log_in(password), self.read, self.write)

    async def read(self) -> bytes:
        """The next piece; empty at the end. Proxmox VE ends without a close frame, which is no failure here."""
        if self._ahead:
            ahead, self._ahead = self._ahead, b""
            return ahead
        while True:
            try:
                piece = await self._connection.recv(decode=False)
            except ConnectionClosed:
                return b""
            if piece:
                return piece

    async def write(self, data: bytes) -> None:
        """Send in frames that pveproxy takes; waits while it does not read."""
        try:
            for start in range(0, len(data), _FRAME_BYTES):
                await self._connection.send(data[start : start + _FRAME_BYTES])
        except ConnectionClosed as closed:
            raise EOFError("the display was closed") from closed

    async def close(self) -> None:
        """Let go at once: nobody waits for a closing handshake that pveproxy does not do."""
        self._connection.transport.abort()
        await self._connection.wait_closed()


def _pinning(cluster: ClusterSettings) -> type[ClientConnection]:
    """A connection that looks at the server's certificate before the handshake, which carries the token."""

    class Pinning(ClientConnection):
        async def handshake(self, *args: Any, **options: Any) -> None:
            shown = self.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            require_pinned(cluster, shown)
            await super().handshake(*args, **options)

    return Pinning


class Displays:
    """Implements `ports.Displays`."""

    def __init__(self, cluster: ClusterSettings, session: Session) -> None:
        self._cluster = cluster
        self._session = session
        # The library writes whole handshakes at debug level, with the token in them.
        self._logger = logging.getLogger("telar.vms.console")
        self._logger.setLevel(logging.WARNING)

    async def vnc(self, node: str, vmid: int) -> VncDisplay:
        path = machine_path(node, vmid)
        options = {"websocket": 1, "generate-password": 1}
        answer, peer = await self._session.call_at("post", f"{path}/vncproxy", node=node, **options)
        try:
            opened = parsing.entry(answer)
            port, ticket = parsing.whole(opened.get("port")), str(opened["ticket"])
        except (parsing.BadShape, KeyError) as error:
            raise unanswered("not a VNC proxy", node=node, changes=False) from error
        display = VncDisplay(await self._join(f"{path}/vncwebsocket", port, ticket, peer))
        try:
            # Older releases have no password of its own: the ticket is one, of which VNC takes the beginning.
            await display.log_in(str(opened.get("password") or ticket))
        except (EOFError, DisplayRefused) as error:
            await display.close()
            if isinstance(error, DisplayRefused):
                raise
            raise DisplayRefused("The cluster closed the machine's display", reason=str(error), node=node) from error
        except BaseException:
            await display.close()
            raise
        return display

    async def spice(self, node: str, vmid: int) -> Mapping[str, str]:
        try:
            answer = await self._session.call("post", f"{machine_path(node, vmid)}/spiceproxy", node=node)
        except ProxmoxRefused as error:
            if "spice port" in error.reason.lower():
                raise NoSpiceDisplay("Its display is not SPICE's (vga qxl); open a VNC console") from error
            raise
        try:
            given = parsing.entry(answer)
        except parsing.BadShape as error:
            raise unanswered("not a viewer's file", node=node, changes=False) from error
        told = {name: str(given[name]) for name in (*_KEYS, *_SWITCHES) if name in given}
        if any("\n" in value or "\r" in value for value in told.values()):
            raise unanswered("a viewer's file of several lines", node=node, changes=False)
        return told

    async def _join(self, path: str, port: int, ticket: str, peer: str | None) -> ClientConnection:
        """Connect to the very API node that opened the proxy: no other one listens on its port."""
        url = urlsplit(self._cluster.url)
        query = f"port={port}&vncticket={quote(ticket, safe='')}"
        token = f"{self._cluster.token_id}={self._cluster.token_secret.get_secret_value()}"
        try:
            return await connect(
                f"wss://{url.netloc}/api2/json/{path}?{query}",
                host=peer or url.hostname,
                port=url.port or 8006,
                server_hostname=url.hostname,
                additional_headers={"Authorization": f"PVEAPIToken={token}"},
                subprotocols=[Subprotocol("binary")],
                compression=None,
                user_agent_header=None,
                proxy=None,
                open_timeout=10.0,
                ping_interval=30.0,
                ping_timeout=90.0,
                max_size=_LARGEST_FRAME,
                max_queue=_FRAMES_AHEAD,
                logger=self._logger,
                ssl=trust(self._cluster),
                create_connection=_pinning(self._cluster),
            )
        except ssl.SSLCertVerificationError as error:
            raise ProxmoxUnavailable(
                "The cluster's certificate is not the trusted one", reason="certificate"
            ) from error
        except (TimeoutError, OSError, InvalidHandshake, EOFError) as error:
            _log.warning("display_not_joined", error=type(error).__name__)
            raise DisplayRefused("The cluster opened no way to the display", reason=type(error).__name__) from error
