"""The calls on users and their API tokens."""

import uuid
from typing import Any

from libs.pvesim.access.accounts import REALMS, ROOT, password_digest
from libs.pvesim.access.permissions import AllOf, AnyOf, Self, needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, parameter_error
from libs.pvesim.params import OPTION_LIST, USERID, Param, Schema, boolean, integer, split_list, text

routes = Routes()
_TOKEN_ID = text(pattern=r"[A-Za-z][A-Za-z0-9.\-_]+", required=True)
_TOKEN: Schema = {"userid": USERID, "tokenid": _TOKEN_ID}
_TOKEN_FIELDS: Schema = {"comment": text(), "expire": integer(0), "privsep": boolean()}
_USER_FIELDS: Schema = {
    "comment": text(2048),
    "email": text(254),
    "enable": boolean(),
    "expire": integer(0),
    "firstname": text(1024),
    "lastname": text(1024),
}
_PRIVATE = {"password", "tokens", "tfa", "tfa_failures"}
_KEYS = text(pattern="[0-9a-zA-Z!=]{0,4096}")
_MODIFY_USER = needs("/access/groups", "User.Modify")
_OWN_OR_MODIFY = AnyOf((Self(), _MODIFY_USER))


@routes.get("/access/users", {"enabled": boolean(), "full": boolean()})
async def list_users(call: Call) -> list[dict[str, Any]]:
    all_visible = call.allows("/access/groups", "User.Modify", "Sys.Audit", any_of=True)
    enabled = call.get("enabled")
    found = []
    for userid, user in sorted(call.lab.accounts.users.items()):
        if not all_visible and userid != call.identity.user:
            continue
        if enabled is not None and bool(user["enable"]) != bool(enabled):
            continue
        entry = _public(user) | {"userid": userid, "realm-type": userid.rpartition("@")[2]}
        if call.flag("full"):
            entry["tokens"] = [
                {"tokenid": token_id, **_token_info(token)} for token_id, token in user["tokens"].items()
            ]
        found.append(entry)
    return found


def _check_groups(call: Call, prefix: str) -> None:
    """There are no groups in the lab."""
    for group in split_list(call.get("groups", "")):
        raise PveError(f"{prefix}group '{group}' does not exist")


def _public(user: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in user.items() if key not in _PRIVATE}


@routes.post(
    "/access/users",
    {**_USER_FIELDS, "userid": USERID, "password": text(64, min_length=8), "groups": Param(many=True), "keys": _KEYS},
    AllOf((needs("/access/realm/pve", "Realm.AllocateUser"), _MODIFY_USER)),
)
async def create_user(call: Call) -> None:
    userid, accounts = call.get("userid"), call.lab.accounts
    if userid.rpartition("@")[2] not in REALMS:
        raise PveError(f"create user failed: domain '{userid.rpartition('@')[2]}' does not exist")
    if userid in accounts.users:
        raise PveError(f"create user failed: user '{userid}' already exists")
    fields = {name: call.get(name) for name in _USER_FIELDS if name in call.params}
    _check_groups(call, "create user failed: ")
    accounts.add(userid, None, **fields)
    if "password" in call.params:
        accounts.set_password(userid, await call.lab.threads.run(password_digest, call.get("password")))


@routes.get(
    "/access/users/{userid}",
    {"userid": USERID},
    AnyOf((Self(), needs("/access/groups", "User.Modify", "Sys.Audit", any_of=True))),
)
async def read_user(call: Call) -> dict[str, Any]:
    user = call.lab.accounts.require(call.get("userid"))
    tokens = {token_id: _token_info(token) for token_id, token in user["tokens"].items()}
    return _public(user) | {"tokens": tokens, "groups": []}


@routes.put(
    "/access/users/{userid}",
    {
        **_USER_FIELDS,
        "append": Param("boolean", requires="groups"),
        "groups": Param(many=True),
        "keys": _KEYS,
        "userid": USERID,
    },
    _MODIFY_USER,
)
async def change_user(call: Call) -> None:
    _check_groups(call, "modify user failed: ")
    user = call.lab.accounts.require(call.get("userid"))
    user |= {name: call.get(name) for name in _USER_FIELDS if name in call.params}
    call.lab.accounts.save(call.get("userid"))


@routes.delete("/access/users/{userid}", {"userid": USERID}, _MODIFY_USER)
async def delete_user(call: Call) -> None:
    userid = call.get("userid")
    call.lab.accounts.require(userid)
    if userid == ROOT:
        raise PveError("delete user failed: unable to delete 'root@pam'")
    for path, authid, role in list(call.lab.access.entries):
        if authid.split("!")[0] == userid:
            call.lab.access.revoke(path, authid, role)
    call.lab.accounts.remove(userid)


def _token_info(token: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in token.items() if key in {"comment", "expire", "privsep"}}


@routes.get("/access/users/{userid}/token", {"userid": USERID}, _OWN_OR_MODIFY)
async def list_tokens(call: Call) -> list[dict[str, Any]]:
    tokens = call.lab.accounts.require(call.get("userid"))["tokens"]
    return [{"tokenid": token_id, **_token_info(token)} for token_id, token in tokens.items()]


@routes.get("/access/users/{userid}/token/{tokenid}", _TOKEN, _OWN_OR_MODIFY)
async def read_token(call: Call) -> dict[str, Any]:
    return _token_info(_token(call))


def _token(call: Call) -> dict[str, Any]:
    tokens = call.lab.accounts.require(call.get("userid"))["tokens"]
    token: dict[str, Any] | None = tokens.get(call.get("tokenid"))
    if token is None:
        raise parameter_error("tokenid", f"no such token '{call.get('tokenid')}' for user '{call.get('userid')}'")
    return token


@routes.post("/access/users/{userid}/token/{tokenid}", {**_TOKEN, **_TOKEN_FIELDS}, _OWN_OR_MODIFY)
async def create_token(call: Call) -> dict[str, Any]:
    userid, token_id = call.get("userid"), call.get("tokenid")
    if token_id in call.lab.accounts.require(userid)["tokens"]:
        raise parameter_error("tokenid", "Token already exists.")
    secret = str(uuid.uuid4())
    fields = {name: call.get(name) for name in _TOKEN_FIELDS if name in call.params}
    call.lab.accounts.add_token(userid, token_id, secret, **fields)
    call.lab.access.forget()
    return {"full-tokenid": f"{userid}!{token_id}", "info": _token_info(_token(call)), "value": secret}


@routes.put(
    "/access/users/{userid}/token/{tokenid}", {**_TOKEN, **_TOKEN_FIELDS, "delete": OPTION_LIST}, _OWN_OR_MODIFY
)
async def change_token(call: Call) -> dict[str, Any]:
    token = _token(call)
    token |= {name: call.get(name) for name in _TOKEN_FIELDS if name in call.params}
    for name in split_list(call.get("delete", "")):
        token.pop(name, None)
    call.lab.accounts.save(call.get("userid"))
    call.lab.access.forget()
    return _token_info(token)


@routes.delete("/access/users/{userid}/token/{tokenid}", _TOKEN, _OWN_OR_MODIFY)
async def delete_token(call: Call) -> None:
    _token(call)
    userid, token_id = call.get("userid"), call.get("tokenid")
    authid = f"{userid}!{token_id}"
    for path, holder, role in list(call.lab.access.entries):
        if holder == authid:
            call.lab.access.revoke(path, authid, role)
    del call.lab.accounts.users[userid]["tokens"][token_id]
    call.lab.accounts.save(userid)
    call.lab.access.forget()
