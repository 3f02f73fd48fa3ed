"""The calls on HA rules (release 9) and on the groups before them."""

from dataclasses import replace
from typing import Any

from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import BAD_REQUEST, PveError, parameter_error
from libs.pvesim.ha.resources import CHANGE, MIGRATED, READ
from libs.pvesim.params import OPTION_LIST, Param, Schema, boolean, check_config_id, one_of, split_list, text

routes = Routes()
_DROPPED = replace(OPTION_LIST, max_length=4096)
_RULES, _GROUPS = "/cluster/ha/rules", "/cluster/ha/groups"
_NAME = Param(required=True, check=check_config_id)
_NODES = Param(many=True)
_PAIR = 2
_RULE_FIELDS: Schema = {
    "affinity": one_of("positive", "negative"),
    "comment": text(4096),
    "disable": boolean(),
    "nodes": _NODES,
    "resources": Param(many=True),
    "strict": boolean(),
}
_RULE_TYPE = one_of("node-affinity", "resource-affinity")
_GROUP_FIELDS: Schema = {"comment": text(4096), "nofailback": boolean(), "restricted": boolean()}


def _check_nodes(call: Call, nodes: str) -> None:
    unknown = [node for node in split_list(nodes) if node.partition(":")[0] not in call.lab.nodes.by_name]
    if unknown:
        raise PveError(f"cannot use non-existent node(s) {', '.join(unknown)}.")


def _check_rule(call: Call, name: str, rule: dict[str, Any]) -> None:
    """Raise what makes a rule unusable: unknown parties first, then what it lacks."""
    parties = split_list(rule.get("resources", ""))
    unmanaged = [sid for sid in parties if sid not in call.lab.ha.resources]
    if unmanaged:
        raise PveError(f"cannot use unmanaged resource(s) {', '.join(unmanaged)}.")
    _check_nodes(call, rule.get("nodes", ""))
    by_node = rule["type"] == "node-affinity"
    whole = bool(rule.get("nodes")) if by_node else "affinity" in rule and len(parties) >= _PAIR
    if not by_node and rule.get("affinity") == "negative":
        whole = whole and len(parties) <= len(call.lab.nodes.by_name)
    if not whole:
        raise PveError(f"Rule '{name}' is invalid.", status=BAD_REQUEST)


def _rule(call: Call) -> dict[str, Any]:
    rule = call.lab.ha.rules.get(call.get("rule"))
    if rule is None:
        raise PveError(f"no such ha rule '{call.get('rule')}'")
    return rule


@routes.get(_RULES, {"type": _RULE_TYPE, "resource": text()}, READ, since=(9,))
async def list_rules(call: Call) -> list[dict[str, Any]]:
    kind, party = call.get("type"), call.get("resource")
    return [
        {"rule": name, **rule}
        for name, rule in call.lab.ha.rules.items()
        if kind in {None, rule["type"]} and (party is None or party in split_list(rule["resources"]))
    ]


@routes.post(
    _RULES,
    {**_RULE_FIELDS, "resources": Param(many=True, required=True), "rule": _NAME, "type": _RULE_TYPE.must()},
    CHANGE,
    since=(9,),
)
async def create_rule(call: Call) -> None:
    name = call.get("rule")
    if name in call.lab.ha.rules:
        raise PveError(f"HA rule '{name}' already defined")
    rule = {key: call.get(key) for key in ("type", *_RULE_FIELDS) if key in call.params}
    _check_rule(call, name, rule)
    call.lab.ha.put_rule(name, rule)


@routes.get(f"{_RULES}/{{rule}}", {"rule": _NAME}, READ, since=(9,))
async def read_rule(call: Call) -> dict[str, Any]:
    return {"rule": call.get("rule"), **_rule(call)}


@routes.put(
    f"{_RULES}/{{rule}}",
    {**_RULE_FIELDS, "rule": _NAME, "type": _RULE_TYPE.must(), "delete": _DROPPED, "digest": text(64)},
    CHANGE,
    since=(9,),
)
async def change_rule(call: Call) -> None:
    dropped = split_list(call.get("delete", ""))
    kept = {key: value for key, value in _rule(call).items() if key not in dropped}
    rule = kept | {key: call.get(key) for key in _RULE_FIELDS if key in call.params}
    _check_rule(call, call.get("rule"), rule)
    call.lab.ha.put_rule(call.get("rule"), rule)


@routes.delete(f"{_RULES}/{{rule}}", {"rule": _NAME}, CHANGE, since=(9,))
async def delete_rule(call: Call) -> None:
    _rule(call)
    call.lab.ha.remove_rule(call.get("rule"))


def _still_groups(call: Call, doing: str) -> None:
    if call.lab.settings.release.has_ha_rules:
        raise PveError(f"cannot {doing}: {MIGRATED}")


def _group(call: Call) -> dict[str, Any]:
    group = call.lab.ha.groups.get(call.get("group"))
    if group is None:
        raise PveError(f"no such ha group '{call.get('group')}'")
    return group


def _shown(call: Call, name: str) -> dict[str, Any]:
    group = call.lab.ha.groups[name]
    return {"group": name, "type": "group", **group, "digest": call.lab.ha.digest(group)}


@routes.get(_GROUPS, permission=READ)
async def list_groups(call: Call) -> list[dict[str, Any]]:
    _still_groups(call, "index groups")
    return [_shown(call, name) for name in call.lab.ha.groups]


@routes.post(
    _GROUPS,
    {**_GROUP_FIELDS, "group": _NAME, "nodes": Param(many=True, required=True), "type": one_of("group")},
    CHANGE,
)
async def create_group(call: Call) -> None:
    _still_groups(call, "create group")
    name = call.get("group")
    if name in call.lab.ha.groups:
        raise parameter_error("group", f"ha group '{name}' already defined")
    _check_nodes(call, call.get("nodes"))
    fields = {key: call.get(key) for key in (*_GROUP_FIELDS, "nodes") if key in call.params}
    call.lab.ha.put_group(name, fields)


@routes.get(f"{_GROUPS}/{{group}}", {"group": _NAME}, READ)
async def read_group(call: Call) -> dict[str, Any]:
    _still_groups(call, "read group")
    _group(call)
    return _shown(call, call.get("group"))


@routes.put(
    f"{_GROUPS}/{{group}}",
    {**_GROUP_FIELDS, "group": _NAME, "nodes": _NODES, "delete": _DROPPED, "digest": text(64)},
    CHANGE,
)
async def change_group(call: Call) -> None:
    _still_groups(call, "update group")
    dropped = split_list(call.get("delete", ""))
    kept = {key: value for key, value in _group(call).items() if key not in dropped}
    _check_nodes(call, call.get("nodes", ""))
    fields = {key: call.get(key) for key in (*_GROUP_FIELDS, "nodes") if key in call.params}
    call.lab.ha.put_group(call.get("group"), kept | fields)


@routes.delete(f"{_GROUPS}/{{group}}", {"group": _NAME}, CHANGE)
async def delete_group(call: Call) -> None:
    _still_groups(call, "delete group")
    _group(call)
    users = [sid for sid, resource in call.lab.ha.resources.items() if resource.get("group") == call.get("group")]
    if users:
        raise PveError(f"ha group is used by service '{users[0]}'")
    call.lab.ha.remove_group(call.get("group"))
