"""The public routes: users, keys, sessions, audit."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response

from libs.common.auth import AdminOnly, CurrentUser, Principal, requires_scope
from libs.common.etag import IfMatch, set_etag
from libs.common.pagination import Page, PageQuery, page
from libs.common.peers import ClientAddress
from services.auth.models import ApiKey, AuditEntry, Session, User
from services.auth.schemas import (
    ApiKeyIn,
    ApiKeyOut,
    AuditEntryOut,
    AuditVerification,
    MePatch,
    NewApiKeyOut,
    OwnedOut,
    PasswordChange,
    SessionOut,
    UsageOut,
    UserIn,
    UserOut,
    UserPatch,
)
from services.auth.service import Actor, ApiKeys, Audit, Sessions, Users


def _maybe_caller(request: Request) -> Principal | None:
    """The caller where logging in is optional; bad credentials are still refused."""
    found = getattr(request.state, "identity", None)
    if isinstance(found, Exception):
        raise found
    return found if isinstance(found, Principal) else None


MaybeCaller = Annotated[Principal | None, Depends(_maybe_caller)]
Search = Annotated[str | None, Query(max_length=100)]


def public_router(users: Users, keys: ApiKeys, sessions: Sessions, audit: Audit) -> APIRouter:
    """All public routes over the given use cases."""
    routes = APIRouter(prefix="/api/v1", dependencies=[requires_scope("account")])
    routes.include_router(_own_account(users))
    routes.include_router(_users(users))
    routes.include_router(_keys(keys))
    routes.include_router(_sessions(sessions))
    routes.include_router(_audit(audit))
    return routes


def _own_account(users: Users) -> APIRouter:
    routes = APIRouter(prefix="/users/me", tags=["users"])

    @routes.get("")
    async def get_me(caller: CurrentUser, response: Response) -> UserOut:
        return _shown(await users.get(UUID(caller.user_id)), response)

    @routes.patch("")
    async def change_me(
        body: MePatch, caller: CurrentUser, address: ClientAddress, response: Response, if_match: IfMatch = None
    ) -> UserOut:
        return _shown(await users.change_me(caller, body, if_match, address), response)

    @routes.post("/password", status_code=204)
    async def change_password(body: PasswordChange, caller: CurrentUser, address: ClientAddress) -> Response:
        await users.change_password(caller, body.current_password, body.new_password, address)
        return Response(status_code=204)

    @routes.get("/usage")
    async def get_usage(caller: CurrentUser) -> UsageOut:
        user, used, owned = await users.usage(UUID(caller.user_id))
        resources = [OwnedOut.model_validate(one, from_attributes=True) for one in owned]
        return UsageOut(quota=user.quota, used=used, resources=resources)

    return routes


def _users(users: Users) -> APIRouter:
    routes = APIRouter(prefix="/users", tags=["users"])

    @routes.post("/", status_code=201)
    async def create_user(body: UserIn, caller: MaybeCaller, address: ClientAddress, response: Response) -> UserOut:
        user = await users.create(body, caller, address)
        response.headers["location"] = f"/api/v1/users/{user.id}"
        return _shown(user, response)

    @routes.get("/")
    async def list_users(
        _admin: AdminOnly,
        request: Request,
        response: Response,
        asked: PageQuery,
        search: Search = None,
        role: Literal["ADMIN", "CLIENT"] | None = None,
    ) -> Page[UserOut]:
        rows, cursor = page(
            await users.list(asked, search=search, role=role),
            asked,
            position=lambda user: _user_position(user, asked.sort),
            http=(request, response),
        )
        return Page(items=[UserOut.of(user) for user in rows], next_cursor=cursor)

    @routes.get("/{user_id}")
    async def get_user(user_id: UUID, _admin: AdminOnly, response: Response) -> UserOut:
        return _shown(await users.get(user_id), response)

    @routes.patch("/{user_id}")
    async def change_user(
        user_id: UUID,
        body: UserPatch,
        admin: AdminOnly,
        address: ClientAddress,
        response: Response,
        if_match: IfMatch = None,
    ) -> UserOut:
        return _shown(await users.change(user_id, body, if_match, Actor.of(admin, address)), response)

    @routes.delete("/{user_id}", status_code=204)
    async def delete_user(
        user_id: UUID, admin: AdminOnly, address: ClientAddress, if_match: IfMatch = None
    ) -> Response:
        await users.delete(user_id, if_match, Actor.of(admin, address))
        return Response(status_code=204)

    return routes


def _keys(keys: ApiKeys) -> APIRouter:
    routes = APIRouter(prefix="/api-keys", tags=["API keys"])

    @routes.get("")
    async def list_api_keys(
        caller: CurrentUser, request: Request, response: Response, asked: PageQuery
    ) -> Page[ApiKeyOut]:
        rows, cursor = page(
            await keys.list(caller, asked),
            asked,
            position=lambda key: _key_position(key, asked.sort),
            http=(request, response),
        )
        return Page(items=[_key_out(key) for key in rows], next_cursor=cursor)

    @routes.post("", status_code=201)
    async def create_api_key(
        body: ApiKeyIn, caller: CurrentUser, address: ClientAddress, response: Response
    ) -> NewApiKeyOut:
        key, text = await keys.create(body, caller, address)
        response.headers["location"] = f"/api/v1/api-keys/{key.id}"
        response.headers["cache-control"] = "no-store"  # nor is the answer kept for an Idempotency-Key
        return NewApiKeyOut(**_key_out(key).model_dump(), key=text)

    @routes.delete("/{key_id}", status_code=204)
    async def delete_api_key(key_id: UUID, caller: CurrentUser, address: ClientAddress) -> Response:
        await keys.delete(key_id, caller, address)
        return Response(status_code=204)

    return routes


def _sessions(sessions: Sessions) -> APIRouter:
    routes = APIRouter(prefix="/sessions", tags=["sessions"])

    @routes.get("")
    async def list_sessions(
        caller: CurrentUser, request: Request, response: Response, asked: PageQuery
    ) -> Page[SessionOut]:
        rows, cursor = page(
            await sessions.list(caller, asked),
            asked,
            position=lambda session: _session_position(session, asked.sort),
            http=(request, response),
        )
        return Page(
            items=[
                SessionOut.model_validate({**session.model_dump(), "current": str(session.id) == caller.session_id})
                for session in rows
            ],
            next_cursor=cursor,
        )

    @routes.delete("/{session_id}", status_code=204)
    async def revoke_session(session_id: UUID, caller: CurrentUser, address: ClientAddress) -> Response:
        await sessions.revoke(session_id, caller, address)
        return Response(status_code=204)

    return routes


def _audit(audit: Audit) -> APIRouter:
    routes = APIRouter(prefix="/audit", tags=["audit"])

    @routes.get("")
    async def list_audit(
        _admin: AdminOnly,
        request: Request,
        response: Response,
        asked: PageQuery,
        actor_id: Search = None,
        action: Search = None,
        target: Search = None,
    ) -> Page[AuditEntryOut]:
        rows, cursor = page(
            await audit.list(asked, actor_id=actor_id, action=action, target=target),
            asked,
            position=lambda entry: (entry.number,),
            http=(request, response),
        )
        return Page(items=[_entry_out(entry) for entry in rows], next_cursor=cursor)

    @routes.get("/verify")
    async def verify_audit(_admin: AdminOnly) -> AuditVerification:
        return await audit.verify()

    return routes


def _shown(user: User, response: Response) -> UserOut:
    set_etag(response, user.version)
    return UserOut.of(user)


def _user_position(user: User, sort: str | None) -> tuple[object, ...]:
    by = {"username": user.username_key, "email": user.email_key, "created_at": user.created_at}
    name = (sort or "id").lstrip("-")
    return (user.id,) if name == "id" else (by[name], user.id)


def _key_position(key: ApiKey, sort: str | None) -> tuple[object, ...]:
    name = (sort or "id").lstrip("-")
    return (key.id,) if name == "id" else (getattr(key, name), key.id)


def _session_position(session: Session, sort: str | None) -> tuple[object, ...]:
    return (session.last_used_at, session.id) if (sort or "").endswith("last_used_at") else (session.id,)


def _key_out(key: ApiKey) -> ApiKeyOut:
    return ApiKeyOut.model_validate({**key.model_dump(), "last_used": key.last_used_at})


def _entry_out(entry: AuditEntry) -> AuditEntryOut:
    return AuditEntryOut.model_validate(entry, from_attributes=True)
