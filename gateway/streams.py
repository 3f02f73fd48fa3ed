"""Relay a WebSocket (consoles, live views) between a client and a service, message by message."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog
from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.typing import Subprotocol

from gateway.proxy import CONNECT_TIMEOUT_S
from gateway.proxy.forwarded import TrustedProxies
from gateway.proxy.headers import handshake_fields
from gateway.proxy.target import checked_target
from gateway.proxy.upstream import Upstream

# RFC 6455, section 7.4.1, and the IANA registry of close codes.
_NORMAL = 1000
_GOING_AWAY = 1001
_NO_STATUS = 1005
_POLICY_VIOLATION = 1008
_BAD_GATEWAY = 1014
_SENDABLE = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
_APPLICATION_CODES = range(3000, 5000)
_MAX_QUEUE = 4

_log = structlog.get_logger()


class _Connect(connect):
    """The library's handshake to exactly one place: no redirects, no re-reading of the target."""

    def __init__(self, uri: str, *, path: str, query: str, **options: Any) -> None:
        super().__init__(uri, **options)
        self.ws_uri = replace(self.ws_uri, path=path, query=query)

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class WebSocketRelay:
    """Relays WebSockets; the caller has checked the Origin, the ticket and the route."""

    def __init__(self, proxies: TrustedProxies, *, max_message_bytes: int = 1024 * 1024) -> None:
        self._proxies = proxies
        self._max_message_bytes = max_message_bytes
        self._open: dict[asyncio.Task[Any], str] = {}
        # The library writes whole handshakes at debug level, tokens and tickets in them.
        self._logger = logging.getLogger("telar.gateway.websocket")
        self._logger.setLevel(logging.WARNING)

    async def forward(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        upstream: Upstream,
        *,
        authorization: bytes,
        request_id: bytes,
        traceparent: bytes,
        session: str = "",
    ) -> None:
        """Relay one WebSocket until either side closes it; called before its `websocket.connect` was received.

        The service's refusal of the handshake is passed on with its status and body (ASGI's `websocket.http.response`).
        Raises TelarError (AmbiguousPath, or one of the upstream's `failures`) only before the handshake was answered.
        """
        await receive()
        fields = handshake_fields(scope)
        fields += _lines(self._proxies.fields(scope))
        fields.append(("x-request-id", request_id.decode("latin-1")))
        if authorization:
            fields.append(("authorization", authorization.decode("latin-1")))
        if traceparent:
            fields.append(("traceparent", traceparent.decode("latin-1")))
        target = checked_target(scope).decode("ascii")
        upstream.admit()
        try:
            connection = await self._connect(upstream, target, fields, scope["subprotocols"])
        except InvalidStatus as refusal:
            await _pass_on(refusal, send)
            return
        await self._relay(connection, receive, send, session)

    def end_sessions(self, belongs: Callable[[str], bool]) -> int:
        """Close the WebSockets of the sessions that `belongs` picks, on both sides with 1008; how many there were."""
        ended = [task for task, session in self._open.items() if session and belongs(session)]
        for task in ended:
            task.cancel()
        return len(ended)

    async def _connect(
        self, upstream: Upstream, target: str, fields: list[tuple[str, str]], subprotocols: list[str]
    ) -> ClientConnection:
        path, _, query = target.partition("?")
        cause: Exception | None = None
        upstream.replicas.next()
        for endpoint in upstream.replicas.in_turn():
            try:
                connection = await _Connect(
                    f"ws://{endpoint.authority.decode('ascii')}/",
                    host=endpoint.address,
                    port=endpoint.port,
                    path=path,
                    query=query,
                    additional_headers=fields,
                    subprotocols=[Subprotocol(name) for name in subprotocols] or None,
                    compression=None,
                    user_agent_header=None,
                    proxy=None,
                    open_timeout=CONNECT_TIMEOUT_S + 5.0,
                    close_timeout=5.0,
                    max_size=self._max_message_bytes,
                    max_queue=_MAX_QUEUE,
                    logger=self._logger,
                )
            except InvalidMessage as error:
                cause = error
            except InvalidStatus:
                upstream.breaker.succeeded()
                raise
            except (InvalidHandshake, ValueError) as error:
                raise upstream.failures.failed(f"The {upstream.name} service refused the handshake.") from error
            except OSError as error:
                cause = error
            else:
                upstream.breaker.succeeded()
                return connection
        raise upstream.unreachable(cause) from cause

    async def _relay(self, connection: ClientConnection, receive: Receive, send: Send, session: str) -> None:
        await send({"type": "websocket.accept", "subprotocol": connection.subprotocol, "headers": []})
        outward = asyncio.create_task(_to_upstream(connection, receive))
        inward = asyncio.create_task(_to_client(connection, send))
        both = asyncio.create_task(asyncio.wait({outward, inward}, return_when=asyncio.FIRST_COMPLETED))
        self._open[both] = session
        try:
            await asyncio.wait({both})
            if both.cancelled():
                await _close_client(send, _POLICY_VIOLATION, "the session has ended")
                await connection.close(_POLICY_VIOLATION, "the session has ended")
        finally:
            del self._open[both]
            for task in (both, outward, inward):
                task.cancel()
            results = await asyncio.gather(both, outward, inward, return_exceptions=True)
            # A close that was agreed on changes nothing here; what was not is cut off.
            connection.transport.abort()
            for result in results:
                if isinstance(result, Exception) and not isinstance(result, OSError):  # OSError: the client left
                    _log.warning("websocket_relay_failed", error=type(result).__name__)


async def _to_upstream(connection: ClientConnection, receive: Receive) -> None:
    """Pass the client's messages on; send() waits while the service does not read, and so reading stops too."""
    try:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code") or _NO_STATUS
                code = _NORMAL if code == _NO_STATUS else code if _may_send(code) else _GOING_AWAY
                await connection.close(code, message.get("reason") or "")
                return
            await connection.send(_content(message))
    except ConnectionClosed:
        # The other direction tells the client with which code.
        await asyncio.get_running_loop().create_future()


async def _to_client(connection: ClientConnection, send: Send) -> None:
    try:
        while True:
            content = await connection.recv()
            kind = "text" if isinstance(content, str) else "bytes"
            await send({"type": "websocket.send", kind: content})
    except ConnectionClosed as closed:
        if closed.rcvd is None and closed.sent is None:
            await _close_client(send, _BAD_GATEWAY, "the service went away")
        else:
            close = closed.rcvd or closed.sent
            code = close.code if close else _NO_STATUS
            code = _NORMAL if code == _NO_STATUS else code if _may_send(code) else _BAD_GATEWAY
            await _close_client(send, code, close.reason if close else "")


def _content(message: Message) -> str | bytes:
    data: bytes | None = message.get("bytes")
    return data if data is not None else str(message.get("text", ""))


def _may_send(code: int) -> bool:
    return code in _SENDABLE or code in _APPLICATION_CODES


async def _close_client(send: Send, code: int, reason: str) -> None:
    await send({"type": "websocket.close", "code": code, "reason": reason})


async def _pass_on(refusal: InvalidStatus, send: Send) -> None:
    response = refusal.response
    fields = [
        (name.lower().encode("ascii"), value.encode("latin-1"))
        for name, value in response.headers.raw_items()
        if name.lower() in ("content-type", "retry-after", "www-authenticate")
    ]
    status = response.status_code
    await send({"type": "websocket.http.response.start", "status": status, "headers": fields})
    await send({"type": "websocket.http.response.body", "body": bytes(response.body or b"")})


def _lines(block: bytes) -> list[tuple[str, str]]:
    pairs = (line.partition(": ") for line in block.decode("latin-1").split("\r\n") if line)
    return [(name, value) for name, _, value in pairs]
