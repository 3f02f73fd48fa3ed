"""A machine's firewall: its options and its rules, which clones take along."""

import hashlib
import json
from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, parameter_error
from libs.pvesim.params import OPTION_LIST, Schema, boolean, integer, one_of, split_list, text
from libs.pvesim.qemu.model import Vm

routes = Routes()
_PATH = "/nodes/{node}/qemu/{vmid}/firewall"
_READ, _CHANGE = needs("/vms/{vmid}", "VM.Audit"), needs("/vms/{vmid}", "VM.Config.Network")
_LEVELS = one_of("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug", "nolog")
_POLICY = one_of("ACCEPT", "REJECT", "DROP")
_OPTIONS: Schema = {
    **{name: boolean() for name in ("dhcp", "enable", "ipfilter", "macfilter", "ndp", "radv")},
    "log_level_in": _LEVELS,
    "log_level_out": _LEVELS,
    "policy_in": _POLICY,
    "policy_out": _POLICY,
}
_DIGEST = {"digest": text(64)}
_RULE: Schema = {
    **{name: text() for name in ("comment", "dport", "icmp-type", "proto", "sport")},
    "action": text(20, min_length=2, pattern=r"[A-Za-z][A-Za-z0-9\-_]+"),
    "dest": text(512),
    "enable": integer(0),
    "iface": text(20, min_length=2),
    "log": _LEVELS,
    "macro": text(128),
    "source": text(512),
    "type": one_of("in", "out", "forward", "group"),
}
_NEW_RULE: Schema = {**_RULE, "action": _RULE["action"].must(), "type": _RULE["type"].must(), "pos": integer(0)}
_POSITION = {"pos": integer(0)}


def _vm(call: Call) -> Vm:
    return call.lab.vms.configured(call.node, call.vmid)


def _rules(vm: Vm) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = vm.firewall.setdefault("rules", [])
    return rules


def _digest(vm: Vm) -> str:
    return hashlib.sha1(json.dumps(vm.firewall, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def _check_digest(call: Call, vm: Vm) -> None:
    if call.get("digest") not in {None, _digest(vm)}:
        raise PveError("detected modified configuration - file changed by other user? Try again.")


@routes.get(_PATH, on_node=False)
async def index(call: Call) -> list[dict[str, str]]:  # noqa: ARG001  (an index is the same for every machine)
    return [{"name": "options"}, {"name": "rules"}]


@routes.get(f"{_PATH}/options", permission=_READ)
async def read_options(call: Call) -> dict[str, Any]:
    vm = _vm(call)
    options: dict[str, Any] = vm.firewall.get("options", {})
    return options | {"digest": _digest(vm)}


@routes.put(f"{_PATH}/options", {**_OPTIONS, **_DIGEST, "delete": OPTION_LIST}, _CHANGE)
async def change_options(call: Call) -> None:
    vm = _vm(call)
    _check_digest(call, vm)
    dropped = split_list(call.get("delete", ""))
    kept = {key: value for key, value in vm.firewall.get("options", {}).items() if key not in dropped}
    vm.firewall["options"] = kept | {name: call.get(name) for name in _OPTIONS if name in call.params}
    call.lab.vms.save(vm)


@routes.get(f"{_PATH}/rules", permission=_READ, on_node=False)
async def list_rules(call: Call) -> list[dict[str, Any]]:
    return [{"pos": position, **rule} for position, rule in enumerate(_rules(_vm(call)))]


@routes.post(f"{_PATH}/rules", {**_NEW_RULE, **_DIGEST}, _CHANGE, on_node=False)
async def create_rule(call: Call) -> None:
    """Rules are put in front unless the call says where."""
    vm = _vm(call)
    _check_digest(call, vm)
    rule = {name: call.get(name) for name in _RULE if name in call.params}
    _rules(vm).insert(call.get("pos", 0), rule)
    call.lab.vms.save(vm)


def _position(call: Call, vm: Vm) -> int:
    position = int(call.get("pos"))
    if position >= len(_rules(vm)):
        raise parameter_error("pos", f"no rule at position {position}")
    return position


@routes.get(f"{_PATH}/rules/{{pos}}", _POSITION, _READ, on_node=False)
async def read_rule(call: Call) -> dict[str, Any]:
    vm = _vm(call)
    position = _position(call, vm)
    return {"pos": position, **_rules(vm)[position]}


@routes.put(
    f"{_PATH}/rules/{{pos}}",
    {**_RULE, **_POSITION, **_DIGEST, "delete": OPTION_LIST, "moveto": integer(0)},
    _CHANGE,
    on_node=False,
)
async def change_rule(call: Call) -> None:
    vm = _vm(call)
    _check_digest(call, vm)
    rules, position = _rules(vm), _position(call, vm)
    if "moveto" in call.params:
        rules.insert(call.get("moveto"), rules.pop(position))
    else:
        dropped = split_list(call.get("delete", ""))
        kept = {key: value for key, value in rules[position].items() if key not in dropped}
        rules[position] = kept | {name: call.get(name) for name in _RULE if name in call.params}
    call.lab.vms.save(vm)


@routes.delete(f"{_PATH}/rules/{{pos}}", {**_POSITION, **_DIGEST}, _CHANGE, on_node=False)
async def delete_rule(call: Call) -> None:
    vm = _vm(call)
    _check_digest(call, vm)
    _rules(vm).pop(_position(call, vm))
    call.lab.vms.save(vm)
