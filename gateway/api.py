"""The routes that the gateway answers itself."""

import json
from dataclasses import asdict
from fnmatch import fnmatchcase
from secrets import compare_digest
from typing import Annotated, Any
from urllib.parse import parse_qsl
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from gateway.aggregate import MergedPage, Services
from gateway.errors import UnknownClient
from gateway.feeds import Feed, sse_response
from gateway.limits import Limits
from gateway.routes import AREAS, SERVICES
from gateway.sessions import Sessions
from gateway.tokens import KeyRing, TokenIssuer
from libs.common.app import VERSION
from libs.common.auth import AdminOnly, CurrentUser, Revocations
from libs.common.errors import FieldError, Invalid, Malformed
from libs.common.events import Event
from libs.common.pagination import link_next

_NOT_READY: dict[str, Any] = {"description": "A service is not ready", "content": {"application/json": {}}}
_SSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
_NO_STORE = "no-store"
"""On every answer that holds a token (RFC 6749, section 5.1)."""
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=100)]


class Credentials(BaseModel):
    """Name (or e-mail) and password."""

    model_config = ConfigDict(extra="ignore")  # OAuth2 forms of older clients carry grant_type and scope too

    username: str = Field(min_length=1, max_length=320)
    password: SecretStr = Field(min_length=1, max_length=4096)


class RefreshRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    refresh_token: SecretStr = Field(min_length=1, max_length=500)


class TokenAnswer(BaseModel):
    access_token: str
    token_type: str
    expires_in: int
    """Seconds."""
    refresh_token: str
    user: dict[str, Any]


class WhoAmI(BaseModel):
    user_id: str
    username: str
    role: str
    scopes: list[str]


def session_router(sessions: Sessions, limits: Limits) -> APIRouter:
    """Login, refresh, logout."""
    routes = APIRouter(prefix="/api/v1", tags=["session"])

    @routes.post("/login", openapi_extra={"requestBody": _login_body()})
    async def login(request: Request, response: Response) -> TokenAnswer:
        response.headers["cache-control"] = _NO_STORE
        address = _address(request)
        limits.spend_on_login(address)
        credentials = await _credentials(request)
        answer = await sessions.login(
            credentials.username,
            credentials.password.get_secret_value(),
            address=address,
            user_agent=request.headers.get("user-agent", ""),
        )
        return TokenAnswer.model_validate(answer)

    @routes.post("/token/refresh")
    async def refresh(body: RefreshRequest, request: Request, response: Response) -> TokenAnswer:
        response.headers["cache-control"] = _NO_STORE
        address = _address(request)
        limits.spend_on_login(address)
        return TokenAnswer.model_validate(
            await sessions.refresh(body.refresh_token.get_secret_value(), address=address)
        )

    @routes.post("/logout", status_code=204)
    async def logout(caller: CurrentUser) -> Response:
        await sessions.logout(caller)
        return Response(status_code=204)

    return routes


def identity_router(keys: KeyRing, issuer: TokenIssuer, limits: Limits, secret: SecretStr) -> APIRouter:
    """Signing keys, service tokens, and a smoke test for clients."""
    routes = APIRouter()

    @routes.get("/.well-known/jwks.json", tags=["session"])
    async def jwks(response: Response) -> dict[str, Any]:
        response.headers["cache-control"] = "public, max-age=30"
        return keys.jwks()

    @routes.post("/oauth/token", include_in_schema=False)
    async def service_token(
        request: Request, response: Response, client: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]
    ) -> dict[str, Any]:
        response.headers["cache-control"] = _NO_STORE
        limits.spend_on_login(_address(request))
        name = client.username
        right = compare_digest(client.password.encode(), secret.get_secret_value().encode())
        if not right or name not in SERVICES:
            raise UnknownClient("Check that TELAR_SERVICE_SECRET is the same everywhere")
        token = issuer.for_service(name)
        return {"access_token": token.text, "token_type": "bearer", "expires_in": token.expires_in_s}

    @routes.get("/protected", tags=["session"])
    async def protected(caller: CurrentUser) -> WhoAmI:
        return WhoAmI(
            user_id=caller.user_id, username=caller.username, role=caller.role.value, scopes=sorted(caller.scopes)
        )

    return routes


def about_router(services: Services) -> APIRouter:
    """Name, heartbeat, health of the whole."""
    routes = APIRouter(tags=["health"])

    @routes.get("/")
    async def about() -> dict[str, str]:
        return {"name": "Telar", "version": VERSION, "docs": "/docs"}

    @routes.get("/heartbeat")
    async def heartbeat() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/api/v1/health", responses={503: _NOT_READY})
    async def health() -> Response:
        well, report = await services.health()
        return JSONResponse({"status": "ok" if well else "degraded", "services": report}, 200 if well else 503)

    return routes


def feeds_router(events: Feed, logs: Feed, revocations: Revocations) -> APIRouter:
    """Domain events for everyone, log lines for administrators, as SSE."""
    routes = APIRouter(tags=["streams"])

    @routes.get("/api/v1/events", response_class=StreamingResponse, responses=_SSE)
    async def stream_events(
        caller: CurrentUser,
        last_event_id: LastEventId = None,
        types: Annotated[str | None, Query(max_length=500, description="Comma-separated, `*` allowed")] = None,
    ) -> StreamingResponse:
        patterns = [part.strip() for part in types.split(",")] if types else ["*"]

        def wants(event: Event) -> bool:
            area = AREAS.get(event.type.partition(".")[0])
            may_see = caller.may_see(event.owner) and area is not None and caller.has_scope(f"{area}:read")
            return may_see and any(fnmatchcase(event.type, pattern) for pattern in patterns)

        return sse_response(events.stream(wants, principal=caller, revocations=revocations, last_id=last_event_id))

    @routes.get("/logs/stream", response_class=StreamingResponse, responses=_SSE)
    async def stream_logs(
        admin: AdminOnly,
        last_event_id: LastEventId = None,
        service: Annotated[str | None, Query(max_length=40)] = None,
        level: Annotated[str | None, Query(pattern="^(debug|info|warning|error)$")] = None,
        follow: bool = True,
    ) -> StreamingResponse:
        levels = ("debug", "info", "warning", "error", "critical")
        least = levels.index(level) if level else 0

        def wants(line: dict[str, Any]) -> bool:
            known = line.get("level", "info")
            loud_enough = known not in levels or levels.index(known) >= least
            return loud_enough and (service is None or line.get("service") == service)

        return sse_response(
            logs.stream(
                wants,
                principal=admin,
                revocations=revocations,
                last_id=last_event_id,
                history=last_event_id is None,
                follow=follow,
            )
        )

    return routes


def aggregate_router(services: Services) -> APIRouter:
    """Operations and dead letters of all services together; one operation is routed by its id."""
    routes = APIRouter(prefix="/api/v1")

    @routes.get("/operations", tags=["operations"])
    async def list_operations(
        _caller: CurrentUser,
        request: Request,
        response: Response,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(max_length=2000)] = None,
        state: Annotated[str | None, Query(max_length=20)] = None,
        kind: Annotated[str | None, Query(max_length=100)] = None,
        resource: Annotated[str | None, Query(max_length=300, description="`<type>/<id>`, or an id alone")] = None,
    ) -> dict[str, Any]:
        wanted = {"state": state, "kind": kind, "resource": resource}
        query = {name: value for name, value in wanted.items() if value}
        page = await services.list_merged("/api/v1/operations", query, _token(request), limit=limit, cursor=cursor)
        return _shown(page, request, response)

    @routes.get("/dead-letters", tags=["dead letters"])
    async def list_dead_letters(
        _admin: AdminOnly,
        request: Request,
        response: Response,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(max_length=2000)] = None,
    ) -> dict[str, Any]:
        page = await services.list_merged("/api/v1/dead-letters", {}, _token(request), limit=limit, cursor=cursor)
        return _shown(page, request, response)

    @routes.post("/dead-letters/{letter_id}/replay", status_code=202, tags=["dead letters"])
    async def replay(letter_id: UUID, _admin: AdminOnly, request: Request) -> dict[str, str]:
        await services.on_dead_letter("POST", str(letter_id), "/replay", _token(request))
        return {"status": "replayed"}

    @routes.delete("/dead-letters/{letter_id}", status_code=204, tags=["dead letters"])
    async def discard(letter_id: UUID, _admin: AdminOnly, request: Request) -> Response:
        await services.on_dead_letter("DELETE", str(letter_id), "", _token(request))
        return Response(status_code=204)

    return routes


def older_clients_router(services: Services) -> APIRouter:
    """What the older VM and stack API answered from one database and is now in three services."""
    routes = APIRouter(tags=["older clients"])

    @routes.get("/users/{userid}")
    async def get_user(userid: str, _caller: CurrentUser, request: Request) -> dict[str, Any]:
        return await services.older_user(userid, _token(request))

    return routes


async def _credentials(request: Request) -> Credentials:
    """JSON or a form, as older clients send; the password never gets into an error."""
    body = await request.body()
    try:
        if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            given: Any = dict(parse_qsl(body.decode()))
        elif request.headers.get("content-type", "").startswith("multipart/form-data"):
            given = dict(await request.form())
        else:
            given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed("Send {username, password} as JSON or as a form") from error
    try:
        return Credentials.model_validate(given)
    except ValidationError as error:
        fields = [FieldError("/body/" + "/".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
        raise Invalid("Send {username, password} as JSON or as a form", errors=fields) from None


def _login_body() -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["username", "password"],
        "properties": {"username": {"type": "string"}, "password": {"type": "string", "format": "password"}},
    }
    return {
        "required": True,
        "content": {"application/json": {"schema": schema}, "application/x-www-form-urlencoded": {"schema": schema}},
    }


def _shown(page: MergedPage, request: Request, response: Response) -> dict[str, Any]:
    if page.next_cursor is not None:
        link_next(request, response, page.next_cursor)
    return asdict(page)


def _address(request: Request) -> str:
    address: str = request.state.client_address
    return address


def _token(request: Request) -> str:
    token: str = request.state.access_token
    return token
