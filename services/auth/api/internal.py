"""Routes for the gateway and the other services alone; the gateway's route table leads nobody here."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from libs.common.auth import ServiceOnly
from services.auth.schemas import (
    Accounts,
    KeyExchangeIn,
    LoginIn,
    LogoutIn,
    RefreshIn,
    RevocationOut,
    Revocations,
    SessionGrant,
    UserExistence,
)
from services.auth.service import Sessions, Users

UserId = Annotated[str, Query(max_length=320)]


def internal_router(sessions: Sessions, users: Users) -> APIRouter:
    """Who somebody is, for the gateway that issues tokens; what is revoked and who exists, for every service."""
    routes = APIRouter(prefix="/internal", include_in_schema=False)

    @routes.post("/login")
    async def login(body: LoginIn, _service: ServiceOnly) -> SessionGrant:
        password = body.password.get_secret_value()
        return await sessions.login(body.username, password, address=body.address, user_agent=body.user_agent)

    @routes.post("/refresh")
    async def refresh(body: RefreshIn, _service: ServiceOnly) -> SessionGrant:
        return await sessions.refresh(body.refresh_token.get_secret_value(), address=body.address)

    @routes.post("/logout", status_code=204)
    async def logout(body: LogoutIn, _service: ServiceOnly) -> Response:
        await sessions.logout(body.session_id, body.user_id)
        return Response(status_code=204)

    @routes.post("/api-keys/exchange")
    async def exchange(body: KeyExchangeIn, _service: ServiceOnly) -> SessionGrant:
        return await sessions.exchange_key(body.key.get_secret_value(), address=body.address)

    @routes.get("/users")
    async def user_exists(userid: UserId, _service: ServiceOnly) -> UserExistence:
        return UserExistence(exists=await users.exists(userid))

    @routes.get("/accounts")
    async def accounts(_service: ServiceOnly, after: UUID | None = None) -> Accounts:
        return Accounts(items=[state.to_json().decode() for state in await users.states(after)])

    @routes.get("/revocations")
    async def revocations(_service: ServiceOnly) -> Revocations:
        return Revocations(
            items=[
                RevocationOut(scope=one.scope, id=one.subject_id, revoked_at=one.revoked_at.timestamp())
                for one in await sessions.revocations()
            ]
        )

    return routes
