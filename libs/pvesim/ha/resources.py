"""The calls on HA resources: listing, adding, changing, removing and moving them."""

from dataclasses import replace
from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError
from libs.pvesim.params import (
    NODE,
    OPTION_LIST,
    Param,
    Schema,
    boolean,
    check_config_id,
    integer,
    one_of,
    split_list,
    text,
)

routes = Routes()
_DROPPED = replace(OPTION_LIST, max_length=4096)
READ = needs("/", "Sys.Audit")
CHANGE = needs("/", "Sys.Console")
MIGRATED = "ha groups have been migrated to rules"
_SID = text(pattern=r"((vm|ct):)?\d+", required=True)
_KIND = one_of("ct", "vm")
_FIELDS: Schema = {
    "state": one_of("started", "stopped", "enabled", "disabled", "ignored"),
    "comment": text(4096),
    "failback": boolean(since=(9,)),
    "group": Param(check=check_config_id),
    "max_relocate": integer(0),
    "max_restart": integer(0),
}
_PATH = "/cluster/ha/resources"


def _sid(call: Call) -> str:
    sid = str(call.get("sid"))
    return sid if ":" in sid else f"vm:{sid}"


def _vmid(sid: str) -> int:
    return int(sid.partition(":")[2])


def _shown(call: Call, sid: str) -> dict[str, Any]:
    resource = call.lab.ha.resources[sid]
    hidden = {"timeout"} if call.lab.settings.release.has_ha_rules else {"timeout", "failback"}
    shown = {key: value for key, value in resource.items() if key not in hidden and value is not None}
    return {"sid": sid, "type": sid.partition(":")[0], **shown, "digest": call.lab.ha.digest(resource)}


def _known(call: Call, sid: str, prefix: str = "") -> None:
    if sid not in call.lab.ha.resources:
        raise PveError(f"{prefix}no such resource '{sid}'")


def _fields(call: Call) -> dict[str, Any]:
    fields = {name: call.get(name) for name in _FIELDS if name in call.params}
    if "group" in fields and call.lab.settings.release.has_ha_rules:
        raise PveError(f"invalid parameter 'group': {MIGRATED}")
    if "group" in fields and fields["group"] not in call.lab.ha.groups:
        raise PveError(f"HA group '{fields['group']}' does not exist")
    if fields.get("state") == "enabled":
        fields["state"] = "started"
    return fields


@routes.get(_PATH, {"type": _KIND}, READ)
async def list_resources(call: Call) -> list[dict[str, Any]]:
    kind = call.get("type")
    return [_shown(call, sid) for sid in call.lab.ha.resources if kind in {None, sid.partition(":")[0]}]


@routes.post(_PATH, {**_FIELDS, "sid": _SID, "type": _KIND}, CHANGE)
async def create_resource(call: Call) -> None:
    sid = _sid(call)
    call.lab.check_quorum()
    if _vmid(sid) not in call.lab.vms.by_id:
        if ":" not in str(call.get("sid")):
            raise PveError(f"unable to detect SID from VMID - VM/CT {call.get('sid')} does not exist")
        raise PveError(f"resource '{sid}' does not exist in cluster")
    if sid in call.lab.ha.resources:
        raise PveError(f"create resource failed: resource ID '{sid}' already defined")
    call.lab.ha.put(sid, **{"state": "started", **_fields(call)})


@routes.get(f"{_PATH}/{{sid}}", {"sid": _SID}, READ)
async def read_resource(call: Call) -> dict[str, Any]:
    _known(call, _sid(call))
    return _shown(call, _sid(call))


@routes.put(f"{_PATH}/{{sid}}", {**_FIELDS, "sid": _SID, "delete": _DROPPED, "digest": text(64)}, CHANGE)
async def change_resource(call: Call) -> None:
    sid, ha = _sid(call), call.lab.ha
    _known(call, sid, "update resources config failed: ")
    if call.get("digest") not in {None, ha.digest(ha.resources[sid])}:
        raise PveError("detected modified configuration - file changed by other user? Try again.")
    fields = _fields(call)
    service = ha.services.get(sid)
    failed = service is not None and service.state == "error"
    if failed and fields.get("state", "disabled") != "disabled":
        raise PveError(f"service '{sid}' in error state, must be disabled and fixed first")
    for name in split_list(call.get("delete", "")):
        ha.resources[sid].pop(name, None)
    ha.put(sid, **fields)


@routes.delete(f"{_PATH}/{{sid}}", {"sid": _SID, "purge": boolean(1, since=(9,))}, CHANGE)
async def delete_resource(call: Call) -> None:
    sid = _sid(call)
    if sid not in call.lab.ha.resources:
        raise PveError(f"cannot delete service '{sid}', not HA managed!")
    call.lab.ha.remove(sid, purge=bool(call.get("purge", 1)))


def _order(call: Call, kind: str) -> dict[str, Any] | None:
    sid, node = _sid(call), call.get("node")
    if not call.lab.ha.manages(_vmid(sid)):
        raise PveError(f"resource '{sid}' is not HA managed")
    call.lab.nodes.known(node)
    answer = call.lab.ha.order(_vmid(sid), kind, node)
    return answer if call.lab.settings.release.has_ha_rules else None


@routes.post(f"{_PATH}/{{sid}}/migrate", {"sid": _SID, "node": NODE}, CHANGE)
async def migrate(call: Call) -> dict[str, Any] | None:
    """Ask for a live migration; release 9 tells who comes along or stands in the way."""
    return _order(call, "migrate")


@routes.post(f"{_PATH}/{{sid}}/relocate", {"sid": _SID, "node": NODE}, CHANGE)
async def relocate(call: Call) -> dict[str, Any] | None:
    """Ask for a stop here and a start there."""
    return _order(call, "relocate")
