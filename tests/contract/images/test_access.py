import re

from fastapi.routing import iter_route_contexts

from tests.contract.images.harness import Service

OPEN = {"/livez", "/readyz", "/metrics", "/docs", "/redoc", "/openapi.json", "/problems/{slug}"}
LINKED = "/api/v1/image-files/{token}/{filename}"
"""Open to whoever has a link: see test_signed_urls."""
KNOWN = {
    ("POST", "/api/v1/images/upload"),
    ("GET", "/api/v1/images"),
    ("GET", "/api/v1/images/{image_id}"),
    ("PATCH", "/api/v1/images/{image_id}"),
    ("DELETE", "/api/v1/images/{image_id}"),
    ("POST", "/api/v1/images/{image_id}/deactivate"),
    ("POST", "/api/v1/images/{image_id}/activate"),
    ("GET", "/api/v1/images/{image_id}/download"),
    ("HEAD", "/api/v1/images/{image_id}/download"),
    ("POST", "/api/v1/images/{image_id}/link"),
    ("GET", "/api/v1/images/{image_id}/members"),
    ("PUT", "/api/v1/images/{image_id}/members"),
    ("GET", "/api/v1/images/{image_id}/provenance"),
    ("POST", "/api/v1/images/{image_id}/verify"),
    ("POST", "/api/v1/images/{image_id}/convert"),
    ("POST", "/api/v1/images/import"),
    ("POST", "/api/v1/uploads"),
    ("HEAD", "/api/v1/uploads/{upload_id}"),
    ("PATCH", "/api/v1/uploads/{upload_id}"),
    ("DELETE", "/api/v1/uploads/{upload_id}"),
    ("GET", "/api/v1/stats"),
}
COMMON = ("/api/v1/operations", "/api/v1/dead-letters")
"""Checked with the rooms of libs.common that bring them."""


def own_routes(service: Service) -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for route in iter_route_contexts(service.app.routes)
        if route.path is not None and route.path not in {*OPEN, LINKED} and not route.path.startswith(COMMON)
        for method in route.methods or ()
        if method != "OPTIONS"  # what the server knows of tus, for anyone
    }


async def test_every_route_is_known_and_refuses_the_anonymous_and_keys_without_the_scope(service: Service) -> None:
    assert own_routes(service) == KNOWN
    for method, path in KNOWN:
        url = re.sub("{[a-z_]+}", "01890000-0000-7000-8000-000000000000", path)
        assert (await service.http.request(method, url)).status_code == 401, (method, path)
        for scopes in (("vms",), ("images:read",) if method not in ("GET", "HEAD") else ("vms:read",)):
            headers = service.as_user("someone", scopes=scopes)
            assert (await service.http.request(method, url, headers=headers)).status_code == 403, (method, path, scopes)


async def test_a_key_that_may_read_can_list(service: Service) -> None:
    headers = service.as_user(await service.new_user(), scopes=("images:read",))
    assert (await service.http.get("/api/v1/images", headers=headers)).status_code == 200


async def test_the_upload_is_described_as_a_form_with_a_file(service: Service) -> None:
    upload = service.app.openapi()["paths"]["/api/v1/images/upload"]["post"]
    form = upload["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "name", "os_type"]
    assert form["properties"]["file"]["format"] == "binary"
    assert "application/problem+json" in upload["responses"]["422"]["content"]


async def test_readiness_names_the_blob_store(service: Service) -> None:
    answer = await service.http.get("/readyz")
    assert answer.json()["checks"] == {"database": "ok", "bus": "ok", "blobs": "ok"}
