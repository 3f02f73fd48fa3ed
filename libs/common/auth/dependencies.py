"""Authentication of requests: the middleware that checks a token once, and the dependencies that routes declare."""

from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.common.auth.principal import Principal
from libs.common.auth.tokens import TokenVerifier
from libs.common.errors import Forbidden, TelarError, Unauthenticated


class AuthenticationMiddleware:
    """Checks a request's bearer token once and leaves the outcome in its state; routes decide who may pass."""

    def __init__(self, app: ASGIApp, *, verifier: TokenVerifier) -> None:
        self._app = app
        self._verifier = verifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            state = scope.setdefault("state", {})
            try:
                token = bearer_token(scope["headers"])
                state["identity"] = await self._verifier.verify(token) if token else None
            except TelarError as error:
                state["identity"] = error
        await self._app(scope, receive, send)


def bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The token of the one Authorization header; raises Unauthenticated if there are several or it is no bearer's."""
    values = [value for name, value in headers if name == b"authorization"]
    if not values:
        return None
    scheme, _, token = values[0].partition(b" ")
    if len(values) > 1 or scheme.lower() != b"bearer" or not token:
        raise Unauthenticated("Send one header: Authorization: Bearer <access token>")
    return token.strip().decode("latin-1")


_bearer = HTTPBearer(auto_error=False, description="An access token from POST /api/v1/login")
_api_key = APIKeyHeader(name="X-API-Key", auto_error=False, description="A key from POST /api/v1/api-keys")


def identity(request: Request) -> Principal:
    """The caller of a request; raises Unauthenticated."""
    found = getattr(request.state, "identity", None)
    if isinstance(found, TelarError):
        raise found
    if not isinstance(found, Principal):
        raise Unauthenticated("Log in at POST /api/v1/login, or send an X-API-Key header")
    return found


async def current_principal(
    request: Request, _token: Annotated[Any, Security(_bearer)], _key: Annotated[Any, Security(_api_key)]
) -> Principal:
    return identity(request)


async def current_user(principal: Annotated[Principal, Depends(current_principal)]) -> Principal:
    if principal.is_service:
        raise Forbidden("This call is for people; service tokens are refused")
    return principal


async def admin_only(principal: Annotated[Principal, Depends(current_user)]) -> Principal:
    if not principal.is_admin:
        raise Forbidden("Only an administrator may do this")
    return principal


async def service_only(principal: Annotated[Principal, Depends(current_principal)]) -> Principal:
    if not principal.is_service:
        raise Forbidden("This call is for Telar's own services")
    return principal


CurrentUser = Annotated[Principal, Depends(current_user)]
AdminOnly = Annotated[Principal, Depends(admin_only)]
ServiceOnly = Annotated[Principal, Depends(service_only)]


def requires_scope(area: str) -> Any:
    """A router dependency: safe methods need `<area>:read`, the others `<area>`; anonymous calls pass it."""

    async def check(request: Request) -> None:
        found = getattr(request.state, "identity", None)
        if not isinstance(found, Principal):
            return
        scope = f"{area}:read" if request.method in ("GET", "HEAD", "OPTIONS") else area
        if not found.is_service and not found.has_scope(scope):
            raise Forbidden(f"This key lacks the scope {scope!r}")

    return Depends(check)
