"""The lab's calls against Proxmox VE's own API description, where TELAR_TEST_PVE_SCHEMA names a file with it.

The file is a JSON list of endpoints: method, path, params, perm, proxyto, allowtoken and the types of the answer.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from libs.pvesim.access.permissions import AllOf, AnyOf, Needs, Permission, Self, Since, World
from libs.pvesim.endpoints import Endpoint
from libs.pvesim.params import Param
from libs.pvesim.qemu.options import OPTIONS
from libs.pvesim.rooms import ROOMS
from tests.contract.pvesim.conftest import Client
from tests.contract.pvesim.test_agent import agent_up

VARIABLE = re.compile(r"\{[^}]*\}")
INDEXED = re.compile(r"^(net|scsi|ide|sata|virtio|unused|ipconfig|serial|parallel|usb|hostpci|numa|virtiofs)\d+$")
# What stands in the file as prose, as code, or in words of its own.
OTHER_WORDS = {
    ("POST", "/nodes/{}/storage/{}/upload"),  # its parameters come as parts, and are checked there
}
OTHER_PERMISSION = re.compile(r"\w+ (/access/users|/nodes/\{\}/network$)")


def shape(path: str) -> str:
    return VARIABLE.sub("{}", path)


def description() -> dict[tuple[str, str], dict[str, Any]]:
    """Endpoints by method and path; empty without the file."""
    path = os.environ.get("TELAR_TEST_PVE_SCHEMA")
    listed = json.loads(Path(path).read_text()) if path else []
    return {(entry["method"], shape(entry["path"])): entry for entry in listed}


KNOWN = description()
ENDPOINTS = [
    endpoint for room in ROOMS for endpoint in room.endpoints if (endpoint.method, shape(endpoint.path)) in KNOWN
]


def named(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {shape(endpoint.path)}"


def told(endpoint: Endpoint) -> dict[str, Any]:
    return KNOWN[endpoint.method, shape(endpoint.path)]


def folded(params: Any) -> dict[str, Any]:
    return {INDEXED.sub(r"\1[n]", name): param for name, param in params.items()}


VM = "nodes/{node}/qemu/{vmid}"
ANSWERED: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "access/users", {"full": 1}),
    ("GET", "cluster/ha/status/current", {}),
    ("GET", "cluster/nextid", {}),
    ("GET", "cluster/resources", {}),
    ("GET", "cluster/status", {}),
    ("GET", "cluster/tasks", {}),
    ("GET", "nodes", {}),
    ("GET", "nodes/{node}/network", {}),
    ("GET", "nodes/{node}/qemu", {}),
    ("GET", "nodes/{node}/status", {}),
    ("GET", "nodes/{node}/storage", {"format": 1}),
    ("GET", "nodes/{node}/tasks", {}),
    ("GET", "pools", {}),
    ("GET", "storage", {}),
    ("GET", "version", {}),
    ("GET", f"{VM}/agent", {}),
    ("GET", f"{VM}/agent/get-osinfo", {}),
    ("GET", f"{VM}/agent/network-get-interfaces", {}),
    ("GET", f"{VM}/agent/file-read", {"file": "/etc/hostname"}),
    ("POST", f"{VM}/agent/exec", {"command": ["true"]}),
    ("GET", f"{VM}/cloudinit", {}),
    ("GET", f"{VM}/cloudinit/dump", {"type": "user"}),
    ("GET", f"{VM}/config", {}),
    ("GET", f"{VM}/feature", {"feature": "clone"}),
    ("GET", f"{VM}/firewall/options", {}),
    ("GET", f"{VM}/firewall/rules", {}),
    ("GET", f"{VM}/migrate", {}),
    ("GET", f"{VM}/pending", {}),
    ("GET", f"{VM}/rrd", {"ds": "cpu", "timeframe": "hour"}),
    ("GET", f"{VM}/rrddata", {"timeframe": "day"}),
    ("GET", f"{VM}/snapshot", {}),
    ("GET", f"{VM}/status/current", {}),
    ("POST", f"{VM}/monitor", {"command": "info status"}),
    ("POST", f"{VM}/snapshot", {"snapname": "typed"}),
    ("POST", f"{VM}/termproxy", {}),
    ("POST", f"{VM}/vncproxy", {"websocket": 1, "generate-password": 1}),
]

if KNOWN:

    @pytest.mark.parametrize("endpoint", ENDPOINTS, ids=named)
    def test_07_a_call_takes_the_originals_parameters(endpoint: Endpoint) -> None:
        if (endpoint.method, shape(endpoint.path)) in OTHER_WORDS:
            return
        ours, theirs = folded(endpoint.params), folded(told(endpoint)["params"])
        assert set(ours) == set(theirs)
        wrong = {name: what for name, param in ours.items() if (what := differing(name, param, theirs[name]))}
        assert wrong == {}

    @pytest.mark.parametrize("endpoint", ENDPOINTS, ids=named)
    def test_06_a_call_asks_for_the_originals_privileges(endpoint: Endpoint) -> None:
        if OTHER_PERMISSION.match(named(endpoint)) is None:
            assert spelled(endpoint.permission) == flattened(told(endpoint)["perm"])

    @pytest.mark.parametrize("endpoint", ENDPOINTS, ids=named)
    def test_05_a_call_goes_where_the_originals_goes_and_takes_tokens_as_it_does(endpoint: Endpoint) -> None:
        assert endpoint.allow_token == bool(told(endpoint)["allowtoken"])
        assert (endpoint.on_node and "{node}" in endpoint.path) == (told(endpoint)["proxyto"] == "node")

    @pytest.mark.parametrize(("method", "path", "given"), ANSWERED, ids=lambda part: str(part)[:60])
    async def test_the_lab_answers_in_the_originals_types(
        root: Client, running_vm: str, method: str, path: str, given: dict[str, Any]
    ) -> None:
        node, vmid = running_vm.split("/")[1], running_vm.rsplit("/", 1)[1]
        await agent_up(root, running_vm)
        concrete = path.format(node=node, vmid=vmid)
        answer = await root(method.lower(), concrete, **given)
        returns = KNOWN[method, shape("/" + path)]["returns"]
        assert misfits(answer, returns, concrete) == []

    def test_07_every_option_of_a_machine_is_known() -> None:
        theirs = set(folded(KNOWN["PUT", "/nodes/{}/qemu/{}/config"]["params"]))
        assert {INDEXED.sub(r"\1[n]", name) for name in OPTIONS} <= theirs


def differing(name: str, ours: Param, theirs: dict[str, Any]) -> list[str]:
    """Where a parameter is not the original's."""
    found = []
    optional = bool(theirs.get("optional"))
    if ours.required == optional and name not in {"node", "vmid"}:
        found.append("required")
    if ours.type != theirs["type"] and not (ours.enum and theirs["type"] == "integer"):
        found.append(f"type {ours.type}, not {theirs['type']}")
    if theirs.get("enum") and set(ours.enum) != set(theirs["enum"]):
        found.append("enum")
    pairs = (("minimum", ours.minimum), ("maximum", ours.maximum))
    pairs += (("minLength", ours.min_length), ("maxLength", ours.max_length))
    found += [key for key, value in pairs if key in theirs and value != theirs[key]]
    if "requires" in theirs and ours.requires != theirs["requires"]:
        found.append("requires")
    return found


def misfits(value: Any, returns: Any, where: str) -> list[str]:
    """Where an answer is not of the declared type; numbers may come as text, and truths as numbers."""
    declared = returns.get("type", "any") if isinstance(returns, dict) else str(returns or "any")
    kind = re.split(r"[?{]", declared, maxsplit=1)[0]
    fits = {
        "array": isinstance(value, list),
        "boolean": value in (0, 1, "0", "1", "", True, False),
        "integer": re.fullmatch(r"-?\d+", str(value)) is not None,
        "null": value is None,
        "number": re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", str(value)) is not None,
        "object": isinstance(value, dict),
        "string": isinstance(value, str | int | float),
    }
    if not fits.get(kind, True):
        return [f"{where}: {value!r} is no {declared}"]
    if not isinstance(returns, dict):
        return []
    found: list[str] = []
    if isinstance(value, list) and "items" in returns:
        for item in value:
            found += misfits(item, returns["items"], f"{where}[]")
    for name, inner in returns.get("properties", {}).items() if isinstance(value, dict) else ():
        if name in value:
            found += misfits(value[name], inner, f"{where}.{name}")
        elif not str(inner).partition("{")[0].endswith("?"):
            found.append(f"{where}.{name} is missing")
    return found


def spelled(permission: Permission) -> Any:
    """One of the lab's permission expressions in the file's form."""
    match permission:
        case Since():
            return spelled(permission.then)
        case AllOf() | AnyOf():
            word = "and" if isinstance(permission, AllOf) else "or"
            return [word, *(spelled(part) for part in permission.parts)]
        case Needs():
            form = ["perm", permission.path, sorted(set(permission.privileges))]
            return [*form, "any", 1] if permission.any_of and len(set(permission.privileges)) > 1 else form
    words: dict[type[Permission], Any] = {World: "world", Self: ["userid-param", "self"]}
    return words.get(type(permission), "all")


def flattened(perm: Any) -> Any:
    if isinstance(perm, list) and perm[0] in {"and", "or"}:
        return [perm[0], *(flattened(part) for part in perm[1:])]
    if isinstance(perm, list) and perm[0] == "perm":
        wanted = sorted(set(perm[2]))
        return ["perm", perm[1], wanted, "any", 1] if "any" in perm and len(wanted) > 1 else ["perm", perm[1], wanted]
    return perm
