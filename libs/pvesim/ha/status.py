"""The calls on the HA stack's state: quorum, master, local managers and services."""

from typing import Any

from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.ha.manager import Service
from libs.pvesim.ha.resources import CHANGE, READ
from libs.pvesim.params import one_of

routes = Routes()
_FRIENDLY = {"request_start": "starting", "request_stop": "stopping"}


@routes.get("/cluster/ha", permission=READ)
async def index(call: Call) -> list[dict[str, str]]:
    rooms = ("status", "resources", "groups", *(("rules",) if call.lab.settings.release.has_ha_rules else ()))
    return [{"id": name} for name in rooms]


@routes.get("/cluster/ha/status")
async def status_index(call: Call) -> list[dict[str, str]]:  # noqa: ARG001  (an index is the same for everybody)
    return [{"name": "current"}, {"name": "manager_status"}]


@routes.get("/cluster/ha/status/current", permission=READ)
async def current(call: Call) -> list[dict[str, Any]]:
    lab = call.lab
    quorate = int(lab.nodes.quorate and not lab.faults.no_quorum())
    now = lab.clock.epoch()
    master = lab.nodes.local.name
    entries: list[dict[str, Any]] = [
        {
            "id": "quorum",
            "type": "quorum",
            "node": call.api_node,
            "status": "OK" if quorate else "No quorum",
            "quorate": quorate,
        },
        {"id": "master", "type": "master", "node": master, "status": f"{master} (active)", "timestamp": now},
    ]
    if lab.settings.release.has((9, 1)):
        armed = "armed" if lab.ha.disarmed is None else "disarmed"
        mode = {} if lab.ha.disarmed is None else {"resource_mode": lab.ha.disarmed}
        fencing = {"id": "fencing", "type": "fencing", "node": master, "status": armed, "armed-state": armed}
        entries.append(fencing | mode)
    for node in lab.nodes:
        busy = any(vm.node == node.name and lab.ha.manages(vm.vmid) for vm in lab.vms)
        shown = "active" if busy else "idle"
        shown = shown if node.up else "old timestamp - dead?"
        seen = int(node.down_since or now)
        entries.append(
            {
                "id": f"lrm:{node.name}",
                "type": "lrm",
                "node": node.name,
                "status": f"{node.name} ({shown})",
                "timestamp": seen,
            }
        )
    return entries + [_service(call, sid) for sid in lab.ha.resources]


def _service(call: Call, sid: str) -> dict[str, Any]:
    lab, resource = call.lab, call.lab.ha.resources[sid]
    vm = lab.vms.by_id.get(int(sid.partition(":")[2]))
    node = vm.node if vm is not None else ""
    crm_state = lab.ha.services.get(sid, Service()).state
    state = _friendly(crm_state, resource, exists=vm is not None)
    return {
        "id": f"service:{sid}",
        "type": "service",
        "sid": sid,
        "node": node,
        "state": state,
        "crm_state": crm_state,
        "request_state": resource["state"],
        "status": f"{sid} ({node}, {state})",
        "max_restart": resource["max_restart"],
        "max_relocate": resource["max_relocate"],
    }


def _friendly(crm_state: str, resource: dict[str, Any], *, exists: bool) -> str:
    """The state as people read it."""
    if not exists:
        return "not found"
    if resource["state"] == "ignored":
        return "ignored"
    if resource["state"] == "disabled" and crm_state == "error":
        return "clearing error flag"
    if resource["state"] == "disabled" and crm_state == "stopped":
        return "disabled"
    return _FRIENDLY.get(crm_state, crm_state)


@routes.get("/cluster/ha/status/manager_status", permission=READ)
async def manager_status(call: Call) -> dict[str, Any]:
    lab = call.lab
    services = {
        sid: {"state": service.state, "node": vm.node if (vm := lab.vms.by_id.get(int(sid.split(":")[1]))) else ""}
        for sid, service in lab.ha.services.items()
    }
    return {
        "manager_status": {
            "master_node": lab.nodes.local.name,
            "timestamp": lab.clock.epoch(),
            "node_status": {node.name: "online" if node.up else "unknown" for node in lab.nodes},
            "service_status": services,
        },
        "lrm_status": {node.name: {"mode": "active", "state": "active"} for node in lab.nodes},
        "quorum": {"node": call.api_node, "quorate": str(int(lab.nodes.quorate))},
    }


@routes.post("/cluster/ha/status/arm-ha", permission=CHANGE, since=(9, 1))
async def arm(call: Call) -> None:
    call.lab.ha.disarm(None)


@routes.post("/cluster/ha/status/disarm-ha", {"resource-mode": one_of("freeze", "ignore").must()}, CHANGE, since=(9, 1))
async def disarm(call: Call) -> None:
    """Stop managing: frozen resources still take requests, ignored ones behave as if nobody managed them."""
    call.lab.ha.disarm(call.get("resource-mode"))
