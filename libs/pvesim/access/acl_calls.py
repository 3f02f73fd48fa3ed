"""The calls on roles, access control lists and effective permissions."""

from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, denied, parameter_error
from libs.pvesim.params import Param, boolean, check_role, split_list, text

routes = Routes()


@routes.get("/access/roles")
async def list_roles(call: Call) -> list[dict[str, Any]]:
    return [
        {"roleid": name, "privs": ",".join(sorted(privileges)), "special": int(name in call.lab.access.built_in)}
        for name, privileges in sorted(call.lab.access.roles.items())
    ]


_ROLE = Param(required=True, check=check_role, max_length=64)


@routes.post("/access/roles", {"roleid": _ROLE, "privs": text()}, needs("/access", "Sys.Modify"))
async def create_role(call: Call) -> None:
    name = call.get("roleid")
    if name in call.lab.access.roles:
        raise PveError(f"create role failed: role '{name}' already exists")
    wanted = frozenset(split_list(call.get("privs", "")))
    for privilege in sorted(wanted - call.lab.access.all_privileges):
        raise parameter_error("privs", f"invalid format - invalid privilege '{privilege}'\n")
    call.lab.access.set_role(name, wanted)


@routes.delete("/access/roles/{roleid}", {"roleid": _ROLE}, needs("/access", "Sys.Modify"))
async def delete_role(call: Call) -> None:
    name = call.get("roleid")
    if name in call.lab.access.built_in:
        raise PveError(f"auto-generated role '{name}' cannot be deleted")
    if name not in call.lab.access.custom_roles:
        raise PveError(f"role '{name}' does not exist")
    call.lab.access.remove_role(name)


@routes.get("/access/acl", {"path": text(), "exact": boolean()})
async def list_acl(call: Call) -> list[dict[str, Any]]:
    return [
        {
            "path": path,
            "ugid": authid,
            "roleid": role,
            "propagate": propagate,
            "type": "token" if "!" in authid else "user",
        }
        for (path, authid, role), propagate in call.lab.access.entries.items()
        if call.allows(path, "Permissions.Modify") or call.allows("/access", "Sys.Audit")
    ]


@routes.put(
    "/access/acl",
    {
        "path": text(required=True),
        "roles": text(required=True),
        "users": text(),
        "tokens": text(),
        "propagate": boolean(1),
        "delete": boolean(),
    },
)
async def change_acl(call: Call) -> None:
    path = call.get("path")
    if not call.allows(path, "Permissions.Modify"):
        raise denied(f"{path}, Permissions.Modify")
    for authid in [*split_list(call.get("users", "")), *split_list(call.get("tokens", ""))]:
        if authid.split("!")[0] not in call.lab.accounts.users:
            raise PveError(f"no such user ('{authid}')")
        for role in split_list(call.get("roles")):
            if role not in call.lab.access.roles:
                raise PveError(f"role '{role}' does not exist")
            if call.flag("delete"):
                call.lab.access.revoke(path, authid, role)
            else:
                call.lab.access.grant(path, authid, role, call.get("propagate"))


@routes.get("/access/permissions", {"path": text(), "userid": text(64)})
async def permissions(call: Call) -> dict[str, dict[str, int]]:
    """Effective privileges by path, of the caller or (for auditors) of another identity."""
    authid = call.get("userid", call.identity.authid)
    if authid != call.identity.authid:
        call.require("/access", "Sys.Audit")
    listed = {path for path, _, _ in call.lab.access.entries} | {"/"}
    paths = [call.get("path")] if "path" in call.params else sorted(listed)
    found = {path: call.lab.access.privileges(authid, path) for path in paths}
    return {path: dict.fromkeys(sorted(privileges), 1) for path, privileges in found.items() if privileges}
