"""The gateway's ASGI entry: authenticate, limit, then relay to a service or answer from the gateway's own app."""

from binascii import hexlify
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import count
from random import randbytes

import structlog
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import ScopeMissing, ServiceAbsent
from gateway.limits import Limits
from gateway.proxy import Relay, TrustedProxies, Upstream
from gateway.routes import Route, cost_of, missing_scope, route_of
from gateway.sessions import Sessions
from gateway.streams import WebSocketRelay
from libs.common.auth import Principal, TokenVerifier
from libs.common.auth.dependencies import bearer_token
from libs.common.errors import Forbidden, TelarError, Unauthenticated
from libs.common.ids import uuid7
from libs.common.problems import from_exception, problem_response
from libs.common.telemetry import Metrics

_log = structlog.get_logger()
_TOLD = frozenset({b"authorization", b"origin", b"x-api-key", b"x-request-id", b"traceparent"})
_EXPOSED = [
    *("ETag", "Link", "Location", "Retry-After", "X-Request-Id", "Content-Disposition", "Content-Digest"),
    *("Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm"),
    *("Upload-Offset", "Upload-Length", "Upload-Expires", "Upload-Metadata"),
]
_MAX_ID_LENGTH = 128
_TRACEPARENT_LENGTH = 55
_MAX_CALLERS = 10_000
_PROCESS = uuid7().hex[:20].encode()
"""The first part of the ids of requests that bring none; a count follows, which costs less than a UUID each."""
_requests = count(1)


class Caller:
    """Who calls, in the words that a service is told; remembered, because forming them costs as much as a relay."""

    __slots__ = ("authorization", "principal", "session", "token")

    def __init__(self, principal: Principal, token: str) -> None:
        self.principal = principal
        self.token = token
        self.authorization = b"Bearer " + token.encode()
        self.session = f"{principal.user_id} {principal.session_id}"


class GatewayEntry:
    """Everything a request meets before it reaches a service; the hot path of the whole suite."""

    def __init__(
        self,
        *,
        local: ASGIApp,
        upstreams: Mapping[str, Upstream],
        relay: Relay,
        sockets: WebSocketRelay,
        proxies: TrustedProxies,
        verifier: TokenVerifier,
        sessions: Sessions,
        limits: Limits,
        metrics: Metrics,
        origins: tuple[str, ...],
    ) -> None:
        self._local = local
        self._upstreams = upstreams
        self._relay = relay
        self._sockets = sockets
        self._proxies = proxies
        self._verifier = verifier
        self._sessions = sessions
        self._limits = limits
        self._metrics = metrics
        self._origins = frozenset(origin.encode() for origin in origins)
        self._with_cors = _with_cors(self._serve, origins) if origins else None
        self._callers: OrderedDict[bytes, Caller] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._local(scope, receive, send)
            return
        told = _Told(scope["headers"])
        if told.has_origin and self._with_cors is not None and scope["type"] == "http":
            await self._with_cors(scope, receive, send)
        else:
            await self._serve(scope, receive, send, told)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, told: "_Told | None" = None) -> None:
        told = told or _Told(scope["headers"])
        route = route_of(scope["path"])
        try:
            if route is None:
                await self._answer_locally(told, scope, receive, send)
            else:
                await self._relay_to(route, told, scope, receive, send)
        except TelarError as error:
            await self._refuse(error, told, scope, receive, send)

    async def _relay_to(self, route: Route, told: "_Told", scope: Scope, receive: Receive, send: Send) -> None:
        upstream = self._upstreams.get(route.service)
        if upstream is None:
            raise ServiceAbsent(f"The {route.service} service is not installed here", retry_after_s=60)
        method = scope.get("method", "GET")
        address = self._proxies.client(scope)
        caller = None if told.authorization is None else self._callers.get(told.authorization)
        if caller is None or not self._verifier.is_good(caller.principal):
            caller = await self._authenticate(told, scope, address)
        if caller is None:
            if (method if scope["type"] == "http" else "WEBSOCKET") not in route.anonymous:
                raise Unauthenticated("Log in at POST /api/v1/login, or send an X-API-Key header")
            principal, authorization, session = None, b"", ""
        else:
            principal, authorization, session = caller.principal, caller.authorization, caller.session
            lacking = missing_scope(route, method, principal)
            if lacking is not None:
                raise ScopeMissing(f"This key lacks the scope {lacking!r}")
        self._limits.spend(principal, address, cost_of(route, method))
        forward = self._relay.forward
        if scope["type"] == "websocket":
            self._check_origin(scope)
            forward = self._sockets.forward
        await forward(
            scope,
            receive,
            send,
            upstream,
            authorization=authorization,
            request_id=told.request_id,
            traceparent=told.traceparent,
            session=session,
        )

    def _check_origin(self, scope: Scope) -> None:
        """Let no foreign page open a socket with a visitor's credentials; clients that are no browsers send none."""
        fields = dict(scope["headers"])
        origin = fields.get(b"origin")
        if origin is not None and origin not in self._origins and origin.split(b"://")[-1] != fields.get(b"host"):
            raise Forbidden("This origin may not open a WebSocket; see TELAR_GATEWAY_CORS_ORIGINS")

    async def _answer_locally(self, told: "_Told", scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        address = state["client_address"] = self._proxies.client(scope)
        state["identity"] = caller = None
        try:
            caller = await self._authenticate(told, scope, address)
            if caller is not None:
                state["identity"], state["access_token"] = caller.principal, caller.token
        except TelarError as error:
            state["identity"] = error
        self._limits.spend(None if caller is None else caller.principal, address)
        await self._local(scope, receive, send)

    async def _authenticate(self, told: "_Told", scope: Scope, address: str) -> Caller | None:
        """The caller, None for nobody; raises Unauthenticated for bad credentials."""
        if told.authorization is not None:
            token = bearer_token(scope["headers"]) or ""
            caller = Caller(await self._verifier.verify(token), token)
            self._callers[told.authorization] = caller
            if len(self._callers) > _MAX_CALLERS:
                self._callers.popitem(last=False)
            return caller
        if told.api_key is None:
            return None
        known = self._sessions.known_key(told.api_key, address)
        if known is None:
            self._limits.spend_on_key(address)
            known = await self._sessions.exchange_key(told.api_key, address)
        return Caller(*known)

    async def _refuse(self, error: Exception, told: "_Told", scope: Scope, receive: Receive, send: Send) -> None:
        refusal = from_exception(error)
        self._metrics.problems.labels("gateway", refusal.slug).inc()
        request_id = told.request_id.decode("latin-1")
        _log.warning("request_refused", service="gateway", slug=refusal.slug, path=scope["path"], request_id=request_id)
        response = problem_response(refusal, instance=scope["path"])
        response.headers["x-request-id"] = request_id
        await response(scope, receive, send)


class _Told:
    """What a request's header says of itself; one pass over the fields, because every request pays for it."""

    __slots__ = ("api_key", "authorization", "has_origin", "request_id", "traceparent")

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self.authorization: bytes | None = None
        self.has_origin = False
        self.api_key: bytes | None = None
        self.request_id = b""
        self.traceparent = b""
        for name, value in fields:
            if name in _TOLD:
                self._note(name, value)
        if not self.request_id:
            self.request_id = b"%s%08x" % (_PROCESS, next(_requests))
        if not self.traceparent:  # W3C Trace Context: a new trace that asks to be recorded
            self.traceparent = b"00-%b-01" % hexlify(randbytes(24), b"-", -16)  # noqa: S311  # told apart, not guessed at

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"authorization":
            # Of two, neither is looked up: whoever reads them all refuses the request.
            self.authorization = value if self.authorization is None else b""
        elif name == b"origin":
            self.has_origin = True
        elif name == b"x-api-key":
            self.api_key = value
        elif name == b"x-request-id":
            if len(value) <= _MAX_ID_LENGTH and value.isascii() and value.isalnum():
                self.request_id = value
        elif len(value) == _TRACEPARENT_LENGTH:
            self.traceparent = value


def _with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """Let the configured front ends in; credentials are sent, so `*` is no origin."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_credentials=True,
        allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=_EXPOSED,
        max_age=600,
    )
