"""What the routes promise without any engine: who may call, what is refused, what is told."""

import asyncio
import json
import uuid
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts

from tests.contract.containers.harness import SITE, Service, zip_of

OPEN = {"/livez", "/readyz", "/metrics", "/docs", "/redoc", "/openapi.json", "/problems/{slug}"}
COMMON = ("/api/v1/operations", "/api/v1/dead-letters")
"""Checked with the rooms of libs.common that bring them."""
KNOWN = {
    ("GET", "/api/v1/stack-templates"),
    ("GET", "/api/v1/stacks"),
    ("POST", "/api/v1/stacks"),
    ("GET", "/api/v1/stacks/{stack_id}"),
    ("DELETE", "/api/v1/stacks/{stack_id}"),
    ("GET", "/api/v1/stacks/{stack_id}/compose"),
    ("GET", "/api/v1/stacks/{stack_id}/logs"),
    ("POST", "/api/v1/stacks/{stack_id}/start"),
    ("POST", "/api/v1/stacks/{stack_id}/stop"),
    ("POST", "/api/v1/stacks/{stack_id}/restart"),
    ("POST", "/api/v1/stacks/{stack_id}/redeploy"),
    ("POST", "/api/v1/stacks/{stack_id}/rollback"),
    ("GET", "/api/v1/stacks/{stack_id}/revisions"),
    ("POST", "/api/v1/stacks/validate"),
    ("GET", "/api/v1/stacks/{stack_id}/stats"),
    ("GET", "/api/v1/stacks/{stack_id}/files"),
    ("GET", "/api/v1/stacks/{stack_id}/files/{path:path}"),
    ("PUT", "/api/v1/stacks/{stack_id}/files/{path:path}"),
    ("POST", "/api/v1/stacks/{stack_id}/files/{path:path}"),
    ("DELETE", "/api/v1/stacks/{stack_id}/files/{path:path}"),
    ("GET", "/service-types"),
    ("POST", "/service"),
    ("GET", "/service/{service_id}"),
    ("POST", "/control-service/{service_id}/{control}"),
}


def own_routes(service: Service) -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for route in iter_route_contexts(service.app.routes)
        if route.path is not None and route.path not in OPEN and not route.path.startswith(COMMON)
        for method in route.methods or ()
    }


def filled(path: str) -> str:
    path = path.replace("{path:path}", "index.html")
    return path.format(stack_id=uuid.uuid4(), service_id=1, control="start")


async def test_every_route_is_known_and_needs_a_valid_token(service: Service) -> None:
    assert own_routes(service) == KNOWN
    for method, path in KNOWN:
        for headers in ({}, {"authorization": "Bearer nonsense"}):
            answer = await service.http.request(method, filled(path), headers=headers)
            assert answer.status_code == 401, (method, path, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"


async def test_a_key_for_other_things_may_not_touch_stacks(service: Service) -> None:
    headers = service.as_user(await service.new_user(), scopes=("images",))
    for method, path in KNOWN:
        answer = await service.http.request(method, filled(path), headers=headers)
        assert answer.status_code == 403, (method, path)


async def test_a_reading_key_reads_and_changes_nothing(service: Service) -> None:
    user = await service.new_user()
    headers = service.as_user(user, scopes=("stacks:read",))
    assert (await service.http.get("/api/v1/stacks", headers=headers)).status_code == 200
    assert (await service.http.post("/api/v1/stacks", headers=headers, json={})).status_code == 403


async def test_service_types_are_listed_for_older_clients_and_as_templates(service: Service) -> None:
    headers = service.as_user(await service.new_user())
    titles = (await service.http.get("/service-types", headers=headers)).json()
    assert {"Static", "PHP", "Node.js", "MySQL", "PostgreSQL", "React", "macOS"} <= set(titles)
    templates = (await service.http.get("/api/v1/stack-templates", headers=headers)).json()
    php = next(template for template in templates if template["name"] == "php")
    assert php["variables"]["properties"]["app_env"]["enum"] == ["production", "development"]


async def test_without_an_engine_a_stack_answers_503_and_tells_how_to_get_one(service: Service) -> None:
    user = await service.new_user()
    answer = await service.create(user, files=SITE)
    assert answer.status_code == 503
    told = answer.json()
    assert told["type"] == "/problems/engine-unavailable"
    assert "deploy/local/engine.sh" in told["detail"]
    assert answer.headers["retry-after"]
    assert service.folders() == []
    assert service.used_stacks(user) == 0


async def test_without_an_engine_the_service_is_ready_and_says_what_is_missing(service: Service) -> None:
    answer = await service.http.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["checks"]["engine"] == "engine-unavailable"
    assert answer.json()["checks"]["database"] == "ok"


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"name": ""}, "/body/name"),
        ({"name": "a\nb"}, "/body/name"),
        ({"name": "x" * 65}, "/body/name"),
        ({"service_types": []}, "/body/service_types"),
        ({"service_types": ["cobol"]}, "/body/service_types/0"),
        ({"primary_app_type": "mysql"}, "/body/primary_app_type"),
        ({"variables": {"unknown": 1}}, "/body/variables/unknown"),
        ({"service_types": ["php"], "variables": {"app_env": "x"}}, "/body/variables/app_env"),
        ({"limits": {"cpus": 100}}, "/body/limits/cpus"),
        ({"limits": {"memory_mib": -1}}, "/body/limits/memory_mib"),
        ({"limits": {"disk": 1}}, "/body/limits/disk"),
        ({"git_repo_url": "http://example.org/x.git"}, "/body/git_repo_url"),
        ({"git_repo_url": "ssh://git@example.org/x.git"}, "/body/git_repo_url"),
        ({"git_repo_url": "--upload-pack=touch"}, "/body/git_repo_url"),
        ({"git_repo_url": "https://user:word@example.org/x.git"}, "/body/git_repo_url"),
        ({"git_repo_url": "ext::sh -c touch"}, "/body/git_repo_url"),
        ({"git_repo_url": "file:///etc"}, "/body/git_repo_url"),
        ({"git_repo_url": "https://example.org/x.git", "git_ref": "-x"}, "/body/git_ref"),
        ({"git_repo_url": "https://example.org/x.git", "git_ref": "a..b"}, "/body/git_ref"),
        ({"git_ref": "main"}, "/body/git_ref"),
        ({"git_token": "abc"}, "/body/git_token"),
        ({"owner_id": "someone"}, "/body/owner_id"),
        ({"state": "running"}, "/body/state"),
        ({"services": [{"host_port": 22}]}, "/body/services"),
        ({"compose": "services: {}"}, "/body/compose"),
    ],
)
async def test_a_wrong_field_is_a_422_that_names_it(service: Service, changes: dict[str, Any], pointer: str) -> None:
    answer = await service.create(await service.new_user(), **changes)
    assert answer.status_code == 422, answer.text
    assert pointer in {error["pointer"] for error in answer.json()["errors"]}


async def test_a_zip_and_a_git_url_together_are_a_422(service: Service) -> None:
    user = await service.new_user()
    answer = await service.create(user, files=SITE, git_repo_url="https://example.org/x.git")
    assert answer.status_code == 422
    assert "not both" in answer.json()["detail"]
    form = {"userid": user, "service_name": "x", "service_types": "static", "git_repo_url": "https://example.org/x.git"}
    older = await service.http.post(
        "/service", headers=service.as_user(user), data=form, files={"zip_file": ("a.zip", zip_of(SITE))}
    )
    assert older.status_code == 422
    assert service.folders() == []


async def test_bodies_that_cannot_be_read_are_4xx(service: Service) -> None:
    headers = service.as_user(await service.new_user())

    async def status(content: bytes, media_type: str) -> int:
        answer = await service.http.post(
            "/api/v1/stacks", content=content, headers={**headers, "content-type": media_type}
        )
        return answer.status_code

    assert await status(b"{", "application/json") == 400
    assert await status(b"[]", "application/json") == 400
    assert await status(b"x", "text/plain") == 415
    assert await status(b"x", "multipart/form-data") == 400
    assert await status(b"x", "multipart/form-data; boundary=b") == 400
    assert await status(b"", "multipart/form-data; boundary=b") in (400, 422)
    assert await status(json.dumps({"name": "x" * 2_000_000}).encode(), "application/json") == 413


async def test_a_zip_above_the_limit_is_a_413(service: Service) -> None:
    answer = await service.create(await service.new_user(), files=b"P" * 150_000)
    assert answer.status_code == 413
    assert service.folders() == []


async def test_a_stack_that_is_not_there_is_a_404_for_every_call(service: Service) -> None:
    headers = service.as_user(await service.new_user())
    path = f"/api/v1/stacks/{uuid.uuid4()}"
    calls = [("GET", path), ("GET", f"{path}/compose"), ("GET", f"{path}/logs"), ("DELETE", path)]
    calls += [("POST", f"{path}/{action}") for action in ("start", "stop", "restart", "redeploy", "rollback")]
    calls += [("GET", f"{path}/{part}") for part in ("revisions", "stats", "files", "files/index.html")]
    calls += [(method, f"{path}/files/index.html") for method in ("PUT", "POST", "DELETE")]
    calls += [("GET", "/service/4711"), ("POST", "/control-service/4711/start")]
    for method, called in calls:
        answer = await service.http.request(method, called, headers=headers)
        assert answer.status_code == 404, called
        assert answer.json()["type"] == "/problems/stack-not-found"


async def test_a_client_does_not_act_for_another_userid(service: Service) -> None:
    user, other = await service.new_user(), await service.new_user(external_id="ext-7")
    for userid in (other, "ext-7", "nobody"):
        form = {"userid": userid, "service_name": "x", "service_types": "static"}
        answer = await service.http.post("/service", headers=service.as_user(user), data=form, files={"f": b""})
        assert answer.status_code in (400, 403)
        answer = await service.http.post("/service", headers=service.as_user(user), data=form, files={"zip_file": b""})
        assert answer.status_code == 403, answer.text


async def test_the_openapi_document_describes_both_bodies_of_a_new_stack(service: Service) -> None:
    document = (await service.http.get("/openapi.json")).json()
    body = document["paths"]["/api/v1/stacks"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert "zip_file" in body["multipart/form-data"]["schema"]["properties"]
    await asyncio.to_thread(json.dumps, document)
