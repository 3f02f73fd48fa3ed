"""The calls on second factors: who has which, adding, changing and removing them, unlocking."""

from typing import Any

from libs.pvesim.access.accounts import ROOT
from libs.pvesim.access.permissions import AnyOf, Self, needs
from libs.pvesim.access.tfa import Entry
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, parameter_error
from libs.pvesim.params import USERID, boolean, one_of, text

routes = Routes()
_MODIFY = needs("/access/groups", "User.Modify")
_READ = AnyOf((Self(), needs("/access/groups", "User.Modify", "Sys.Audit", any_of=True)))
_CHANGE = AnyOf((Self(), _MODIFY))
_PASSWORD = text(64, min_length=5)
_ENTRY = {"userid": USERID, "id": text(required=True)}


def _known(call: Call) -> str:
    userid = str(call.get("userid"))
    call.lab.accounts.require(userid)
    return userid


def _shown(entry_id: str, entry: Entry) -> dict[str, Any]:
    shown: dict[str, Any] = {key: entry[key] for key in ("type", "description", "created") if key in entry}
    return {"id": entry_id, **shown, "enable": int(entry.get("enable", 1))}


def _entry(call: Call) -> Entry:
    entry = call.lab.second_factors.entries(_known(call)).get(call.get("id"))
    if entry is None:
        raise PveError(f"no such tfa entry '{call.get('id')}'")
    return entry


async def _check_password(call: Call) -> None:
    """Everybody but root repeats the own password before second factors change."""
    caller = call.identity.authid
    if caller == ROOT:
        return
    if "password" not in call.params:
        raise parameter_error("password", "password is required to modify TFA data")
    if not await call.lab.threads.run(call.lab.accounts.password_opens, caller, call.get("password")):
        raise PveError("authentication failure")


@routes.get("/access/tfa")
async def list_all(call: Call) -> list[dict[str, Any]]:
    lab = call.lab
    auditor = call.allows("/access/groups", "User.Modify", "Sys.Audit", any_of=True)
    found = []
    for userid in sorted(lab.accounts.users):
        entries = lab.second_factors.entries(userid)
        if entries and (auditor or userid == call.identity.authid):
            listed = [_shown(entry_id, entry) for entry_id, entry in entries.items()]
            locked = {"totp-locked": 1} if lab.second_factors.locked(userid) else {}
            found.append({"userid": userid, "entries": listed, **locked})
    return found


@routes.get("/access/tfa/{userid}", {"userid": USERID}, _READ)
async def list_of_user(call: Call) -> list[dict[str, Any]]:
    entries = call.lab.second_factors.entries(_known(call))
    return [_shown(entry_id, entry) for entry_id, entry in entries.items()]


@routes.post(
    "/access/tfa/{userid}",
    {
        "userid": USERID,
        "type": one_of("totp", "u2f", "webauthn", "recovery", "yubico").must(),
        "challenge": text(),
        "description": text(255),
        "password": _PASSWORD,
        "totp": text(),
        "value": text(),
    },
    _CHANGE,
    allow_token=False,
)
async def add(call: Call) -> dict[str, Any]:
    userid, factors = _known(call), call.lab.second_factors
    await _check_password(call)
    kind, description = call.get("type"), call.get("description", "")
    if kind == "recovery":
        return {"id": "recovery", "recovery": factors.add_recovery(userid, description)}
    if kind != "totp":
        raise PveError(f"{kind} is not configured on this cluster")
    for name in ("totp", "value"):
        if name not in call.params:
            raise parameter_error(name, "property is missing and it is not optional")
    return {"id": factors.add_totp(userid, call.get("totp"), call.get("value"), description)}


@routes.get("/access/tfa/{userid}/{id}", _ENTRY, _READ)
async def read(call: Call) -> dict[str, Any]:
    return _shown(call.get("id"), _entry(call))


@routes.put(
    "/access/tfa/{userid}/{id}",
    {**_ENTRY, "description": text(255), "enable": boolean(), "password": _PASSWORD},
    _CHANGE,
    allow_token=False,
)
async def change(call: Call) -> None:
    _entry(call)
    await _check_password(call)
    fields = {name: call.get(name) for name in ("description", "enable") if name in call.params}
    call.lab.second_factors.change(call.get("userid"), call.get("id"), **fields)


@routes.delete("/access/tfa/{userid}/{id}", {**_ENTRY, "password": _PASSWORD}, _CHANGE, allow_token=False)
async def remove(call: Call) -> None:
    _entry(call)
    await _check_password(call)
    call.lab.second_factors.remove(call.get("userid"), call.get("id"))


@routes.get("/access/users/{userid}/tfa", {"userid": USERID, "multiple": boolean(0)}, _READ)
async def types_of_user(call: Call) -> dict[str, Any]:
    types = sorted({entry["type"] for entry in call.lab.second_factors.entries(_known(call)).values()})
    if call.flag("multiple"):
        return {"types": types}
    return {"user": "oath"} if "totp" in types else {}


@routes.put("/access/users/{userid}/unlock-tfa", {"userid": USERID}, _MODIFY)
async def unlock(call: Call) -> int:
    return int(call.lab.second_factors.unlock(_known(call)))
