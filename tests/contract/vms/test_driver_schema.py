"""The driver's requests against Proxmox VE's own API description, where TELAR_TEST_PVE_SCHEMA names a file with it.

A machine's whole life is recorded, and a template's: every call must be one that the description knows, with parameters
that it knows, in their types, enumerations, patterns and bounds.
"""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from services.vms.adapters.proxmox.session import Session
from tests.contract.pvesim.test_schema import INDEXED, KNOWN
from tests.contract.vms.harness import KEY, Service
from tests.contract.vms.test_templates import made, remove

Call = tuple[str, str, dict[str, Any]]
_UPID = re.compile(r"UPID:[^/]+")
_PLACES = (
    (re.compile(r"^nodes/[^/]+"), "nodes/{}"),
    (re.compile(r"/qemu/[0-9]+"), "/qemu/{}"),
    (re.compile(r"/tasks/UPID:[^/]+"), "/tasks/{}"),
    (re.compile(r"/storage/[^/]+"), "/storage/{}"),
    (re.compile(r"/content/[^/]+:.*"), "/content/{}"),
    (re.compile(r"/(resources|rules|groups)/[^/]+$"), r"/\1/{}"),
    (re.compile(r"/snapshot/[^/]+"), "/snapshot/{}"),
)
_ALSO = {"node", "vmid", "storage", "volume", "upid", "sid", "rule", "group", "snapname"}
"""Parameters that stand in a path."""


def shape(path: str) -> str:
    for pattern, place in _PLACES:
        path = pattern.sub(place, path)
    return "/" + path


def complaints(call: Call) -> list[str]:
    """What the description says against a request."""
    method, path, given = call
    told = KNOWN.get((method, shape(path)))
    if told is None:
        return [f"{method} {shape(path)} is not described"]
    known = told["params"]
    found = []
    for name, value in given.items():
        param = known.get(name) or known.get(INDEXED.sub(r"\1[n]", name))
        if param is None:
            found.append(f"{method} {shape(path)}: {name} is not described")
        else:
            found += [f"{method} {shape(path)}: {name}={value!r} {why}" for why in _wrong(param, value)]
    missing = {name for name, param in known.items() if not param.get("optional")} - set(given) - _ALSO
    return found + [f"{method} {shape(path)}: {name} is missing" for name in sorted(missing)]


def _wrong(param: Mapping[str, Any], value: Any) -> list[str]:
    wrong = []
    kind = param.get("type")
    if kind == "boolean" and str(value) not in ("0", "1"):
        wrong.append("is no boolean")
    if kind == "integer" and not re.fullmatch(r"-?[0-9]+", str(value)):
        wrong.append("is no integer")
    if kind in ("integer", "number") and not wrong:
        if "minimum" in param and float(value) < float(param["minimum"]):
            wrong.append("is too small")
        if "maximum" in param and float(value) > float(param["maximum"]):
            wrong.append("is too large")
    if "enum" in param and str(value) not in map(str, param["enum"]):
        wrong.append(f"is none of {param['enum']}")
    if "maxLength" in param and len(str(value)) > int(param["maxLength"]):
        wrong.append("is too long")
    if "pattern" in param and isinstance(param["pattern"], str) and not re.fullmatch(param["pattern"], str(value)):
        wrong.append("does not match the pattern")
    return wrong


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every request that any driver makes from now on."""
    calls: list[Call] = []
    send = Session.call

    async def noting(self: Session, method: str, path: str, *, node: str | None = None, **parameters: Any) -> Any:
        calls.append((method.upper(), path, parameters))
        return await send(self, method, path, node=node, **parameters)

    monkeypatch.setattr(Session, "call", noting)
    return calls


async def test_every_request_of_a_machines_life_is_one_that_the_description_knows(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    user = await service.new_user()
    template = await made(service, image_id=str(service.images.add().id))
    network = {"bridge": "vmbr0", "ip": "192.0.2.9/24", "gateway": "192.0.2.1", "nameservers": ["192.0.2.53"]}
    plain = await service.vm(
        user, os_type=None, template=template["name"], user="ada", password="secret", network=network, ha=True
    )
    seeded = await service.vm(user, user_data="#cloud-config\n", ssh_public_key=KEY)
    await service.done("PATCH", f"/api/v1/vms/{seeded['id']}", user, json={"cores": 2, "disk_gib": 6, "restart": True})
    for action in ("pause", "resume", "reboot", "stop", "start", "shutdown"):
        await service.done("POST", f"/api/v1/vms/{seeded['id']}/{action}", user)
    for vm in (plain, seeded):
        await service.shown(vm["id"], user)
        await service.done("DELETE", f"/api/v1/vms/{vm['id']}", user)
    await remove(service, template)
    asked = {(method, shape(path)) for method, path, _ in calls}
    assert ("POST", "/nodes/{}/storage/{}/download-url") in asked
    assert ("POST", "/nodes/{}/qemu/{}/template") in asked
    assert ("POST", "/cluster/ha/rules") in asked
    assert ("DELETE", "/nodes/{}/storage/{}/content/{}") in asked
    if KNOWN:
        against = sorted({why for call in calls for why in complaints(call)})
        assert against == []
