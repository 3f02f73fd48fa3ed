"""The `/users` routes of the older VM and stack API: multipart forms, users named by their `userid`."""

from typing import Annotated

from fastapi import APIRouter, Form

from libs.common.auth import AdminOnly, CurrentUser, requires_scope
from libs.common.peers import ClientAddress
from services.auth.errors import UserNotFound
from services.auth.models import User
from services.auth.schemas import LegacyUser, OwnedOut
from services.auth.service import Users


def legacy_router(users: Users) -> APIRouter:
    """`POST /users` and `GET /users/{userid}`; only administrators act for other userids."""
    routes = APIRouter(prefix="/users", tags=["older clients"], dependencies=[requires_scope("account")])

    @routes.post("", status_code=201)
    async def create_user_by_userid(
        userid: Annotated[str, Form(min_length=1, max_length=100)],
        username: Annotated[str, Form(min_length=1, max_length=64)],
        admin: AdminOnly,
        address: ClientAddress,
    ) -> LegacyUser:
        user = await users.create_external(userid, username, admin, address)
        return _legacy(user, [])

    @routes.get("/{userid}")
    async def get_user_by_userid(userid: str, caller: CurrentUser) -> LegacyUser:
        user = await users.by_external_id(userid)
        if not caller.may_see(str(user.id)):
            raise UserNotFound(f"There is no user with the userid {userid!r}")
        _, _, owned = await users.usage(user.id)
        return _legacy(user, [OwnedOut.model_validate(one, from_attributes=True) for one in owned])

    return routes


def _legacy(user: User, owned: list[OwnedOut]) -> LegacyUser:
    return LegacyUser(
        userid=user.external_id or str(user.id),
        username=user.username,
        id=user.id,
        vms=[one for one in owned if one.type == "vm"],
        services=[one for one in owned if one.type == "stack"],
    )
