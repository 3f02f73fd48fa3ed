"""Logging in: tickets and their renewal, the second factor, capabilities, realms and passwords."""

from typing import Any

from libs.pvesim.access.accounts import REALMS, ROOT, password_digest
from libs.pvesim.access.permissions import WORLD
from libs.pvesim.access.roles import area_of
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import UNAUTHORIZED, PveError
from libs.pvesim.params import USERID, Schema, boolean, split_list, text

routes = Routes()
_LOGIN: Schema = {
    "username": text(64, required=True),
    "password": text(required=True),
    "realm": text(32),
    "otp": text(),
    "tfa-challenge": text(),
    "new-format": boolean(),
    "path": text(64, requires="privs"),
    "privs": text(64, requires="path"),
}


@routes.get("/access/domains", permission=WORLD)
async def domains(call: Call) -> list[dict[str, Any]]:  # noqa: ARG001  (realms are fixed)
    return [{"realm": realm, "type": realm, "comment": comment} for realm, comment in REALMS.items()]


@routes.get("/access/ticket", permission=WORLD)
async def ticket_stub(call: Call) -> None:
    """Answers null, as the original does, for the sake of form-based clients."""


@routes.post("/access/ticket", _LOGIN, WORLD, allow_token=False)
async def login(call: Call) -> dict[str, Any]:
    lab = call.lab
    username, password = call.get("username"), call.get("password")
    userid = username if "@" in username else f"{username}@{call.get('realm', 'pam')}"
    if "tfa-challenge" in call.params:
        if not _second_step(call, userid, password):
            raise _failed()
        return _opened(call, userid)
    renewing = lab.office.user_of(password)
    opened = renewing in {userid, ROOT} and lab.accounts.is_active(userid)
    if not opened:
        opened = renewing is None and await lab.threads.run(lab.accounts.password_opens, userid, password)
    if "path" in call.params:
        wanted = tuple(split_list(call.get("privs")))
        if not opened or not lab.access.allows(userid, call.get("path"), wanted):
            raise _failed()
        return {"username": userid}
    if not opened:
        raise _failed()
    kinds = lab.second_factors.enabled(userid)
    if renewing is None and kinds:
        challenge = lab.office.half_ticket(userid, kinds)
        return {"username": userid, "ticket": challenge, "CSRFPreventionToken": _csrf(call, userid), "NeedTFA": 1}
    return _opened(call, userid)


def _failed() -> PveError:
    return PveError("authentication failure", status=UNAUTHORIZED)


def _csrf(call: Call, userid: str) -> str:
    return call.lab.office.csrf_token(userid)


def _second_step(call: Call, userid: str, answer: str) -> bool:
    """The half ticket must be this user's, and the answer to its challenge right."""
    lab = call.lab
    if not lab.office.half_opens(call.get("tfa-challenge"), userid) or not lab.accounts.is_active(userid):
        return False
    return lab.second_factors.proves(userid, answer)


def _opened(call: Call, userid: str) -> dict[str, Any]:
    """The answer to a complete login."""
    lab = call.lab
    answer: dict[str, Any] = {
        "username": userid,
        "ticket": lab.office.ticket(userid),
        "CSRFPreventionToken": _csrf(call, userid),
        "cap": _capabilities(call, userid),
    }
    if lab.access.allows(userid, "/", ("Sys.Audit",)):
        answer["clustername"] = lab.settings.cluster_name
    return answer


def _capabilities(call: Call, userid: str) -> dict[str, dict[str, int]]:
    cap: dict[str, dict[str, int]] = {
        area: {} for area in ("access", "dc", "mapping", "nodes", "sdn", "storage", "vms")
    }
    for path in ("/", "/vms", "/storage", "/nodes", "/access", "/pool", "/sdn"):
        for privilege in call.lab.access.privileges(userid, path):
            cap[area_of(privilege)][privilege] = 1
    cap["dc"] = {name: 1 for name in cap["nodes"] if name in {"Sys.Audit", "Sys.Modify"}}
    return cap


@routes.put(
    "/access/password", {"userid": USERID, "password": text(64, min_length=8, required=True)}, allow_token=False
)
async def change_password(call: Call) -> None:
    userid = call.get("userid")
    if call.identity.authid not in {userid, ROOT}:
        call.require("/access/groups", "User.Modify")
    call.lab.accounts.require(userid)
    call.lab.accounts.set_password(userid, await call.lab.threads.run(password_digest, call.get("password")))
