from fastapi.routing import iter_route_contexts

from tests.contract.vms.harness import Service

OPEN = {"/livez", "/readyz", "/metrics", "/docs", "/redoc", "/openapi.json", "/problems/{slug}"}
_ACTIONS = ("start", "shutdown", "stop", "reboot", "pause", "resume", "suspend")
KNOWN = {
    ("GET", "/api/v1/vms"),
    ("POST", "/api/v1/vms"),
    ("GET", "/api/v1/vms/{vm_id}"),
    ("PATCH", "/api/v1/vms/{vm_id}"),
    ("DELETE", "/api/v1/vms/{vm_id}"),
    *(("POST", f"/api/v1/vms/{{vm_id}}/{action}") for action in _ACTIONS),
    ("POST", "/api/v1/vms/{vm_id}/console"),
    ("GET", "/api/v1/drift"),
    ("POST", "/api/v1/drift/{drift_id}/resolve"),
    ("GET", "/api/v1/vms/{vm_id}/metrics"),
    ("GET", "/api/v1/vms/{vm_id}/snapshots"),
    ("POST", "/api/v1/vms/{vm_id}/snapshots"),
    ("POST", "/api/v1/vms/{vm_id}/snapshots/{name}/rollback"),
    ("DELETE", "/api/v1/vms/{vm_id}/snapshots/{name}"),
    ("GET", "/api/v1/templates"),
    ("POST", "/api/v1/templates"),
    ("DELETE", "/api/v1/templates/{template_id}"),
    ("GET", "/api/v1/nodes"),
    ("PUT", "/api/v1/nodes/{node}/maintenance"),
    ("DELETE", "/api/v1/nodes/{node}/maintenance"),
    ("POST", "/api/v1/placements"),
    ("GET", "/api/v1/virtual-machines/"),
    ("POST", "/api/v1/virtual-machines/"),
    ("GET", "/api/v1/virtual-machines/{vm_id}"),
    ("PUT", "/api/v1/virtual-machines/{vm_id}"),
    ("DELETE", "/api/v1/virtual-machines/{vm_id}"),
    ("POST", "/vm"),
    ("GET", "/vm/{vm_id}"),
    ("POST", "/vm/update/{vm_id}"),
    ("POST", "/vm/connect/{vm_id}"),
    *(("POST", f"/control-vm/{{vm_id}}/{control}") for control in ("start", "shutdown", "pause", "delete")),
}
COMMON = ("/api/v1/operations", "/api/v1/dead-letters")
"""Checked with the rooms of libs.common that bring them."""
ABSENT = "01890000-0000-7000-8000-000000000000"


def own_routes(service: Service) -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for route in iter_route_contexts(service.app.routes)
        if route.path is not None and route.path not in OPEN and not route.path.startswith(COMMON)
        for method in route.methods or ()
    }


def url_of(path: str, vm: dict[str, object] | None = None) -> str:
    """A route's address, of a machine or of none."""
    by_integer = path.startswith(("/vm", "/control-vm", "/api/v1/virtual-machines"))
    absent = "99999" if by_integer else ABSENT
    chosen = absent if vm is None else str(vm["vmid"] if by_integer else vm["id"])
    return path.replace("{vm_id}", chosen).replace("{name}", "before").replace("{drift_id}", ABSENT)


async def test_every_route_is_known_and_refuses_the_anonymous_and_keys_without_the_scope(service: Service) -> None:
    assert own_routes(service) == KNOWN
    for method, path in KNOWN:
        url = url_of(path)
        assert (await service.http.request(method, url)).status_code == 401, (method, path)
        for scopes in (("images",), ("vms:read",) if method != "GET" else ("images:read",)):
            headers = service.as_user("someone", scopes=scopes)
            assert (await service.http.request(method, url, headers=headers)).status_code == 403, (method, path, scopes)


async def test_another_owners_machine_does_not_exist(service: Service) -> None:
    owner, other = await service.new_user(), await service.new_user()
    vm = await service.vm(owner, start=False)
    for method, path in sorted(KNOWN):
        if "{vm_id}" not in path:
            continue
        takes_name = method in ("PATCH", "PUT") or path.endswith("/snapshots")
        body = {"json": {"name": "mine-now"}} if takes_name and method != "GET" else {}
        theirs = await service.call(method, url_of(path, vm), other, **body)
        none = await service.call(method, url_of(path), other, **body)
        assert theirs.status_code == none.status_code == 404, (method, path)
        assert theirs.json()["detail"] == none.json()["detail"], (method, path)
    assert (await service.call("GET", "/api/v1/vms", other)).json()["items"] == []
    assert (await service.call("GET", "/api/v1/virtual-machines/", other)).json() == []
    assert (await service.shown(vm["id"], owner))["name"] == "web"
    seen = await service.call("GET", f"/api/v1/vms/{vm['id']}", other, role="ADMIN")
    assert seen.status_code == 200


async def test_every_route_is_documented_with_its_refusals(service: Service) -> None:
    document = service.app.openapi()
    for method, path in KNOWN:
        told = document["paths"][path][method.lower()]
        assert told["tags"], (method, path)
    assert "409" in document["paths"]["/api/v1/vms"]["post"]["responses"]
