"""Stacks on a real engine: deployed, answering, stopped, started, restarted, deleted without remains."""

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import docker
import httpx
import pytest
import yaml

from services.containers.adapters.engine import DockerEngine
from services.containers.domain.policy import Grants, violations
from services.containers.domain.stacks import project_name
from services.containers.errors import TooManyLogStreams
from tests.contract.containers.deploying import require_images
from tests.contract.containers.harness import SITE, Service, running, zip_of
from tests.integration.containers.conftest import Remains

pytestmark = pytest.mark.docker
Eventually = Callable[..., Awaitable[None]]


def project_of(stack: dict[str, Any]) -> str:
    return project_name(UUID(stack["id"]))


async def page(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False) as web:
        answer = await web.get(url)
    assert answer.status_code == 200, answer.text
    return answer.text


async def test_a_zip_of_a_site_is_deployed_controlled_and_deleted_without_remains(
    service: Service, remains: Remains, eventually: Eventually
) -> None:
    user = await service.new_user(stacks=1)
    answer = await service.create(user, files=SITE)
    assert answer.headers["location"] == f"/api/v1/operations/{answer.json()['id']}"
    assert answer.json()["stack"]["state"] == "creating"
    stack = await service.done(user, answer)
    shown = await service.get(user, stack["id"])
    assert (shown["state"], shown["health"]) == ("running", "healthy")
    assert shown["services"][0]["state"] == "running"
    assert await page(shown["url"]) == SITE["index.html"]
    assert await page(shown["url"] + "/css/site.css") == SITE["css/site.css"]

    await service.act(user, stack["id"], "stop")
    assert (await service.get(user, stack["id"]))["health"] == "stopped"
    with pytest.raises(httpx.TransportError):
        await page(shown["url"])
    await service.act(user, stack["id"], "start")
    assert await page(shown["url"]) == SITE["index.html"]
    await service.act(user, stack["id"], "restart")
    assert await page(shown["url"]) == SITE["index.html"]

    listed = (await service.http.get("/api/v1/stacks", headers=service.as_user(user))).json()["items"]
    assert [one["id"] for one in listed] == [stack["id"]]
    await service.act(user, stack["id"], "delete")
    assert remains(project_of(stack)) == []
    assert stack["id"].replace("-", "") not in service.folders()
    assert service.used_stacks(user) == 0
    assert service.rows("SELECT * FROM host_ports WHERE stack_id = %s", stack["id"]) == []
    gone = await service.http.get(f"/api/v1/stacks/{stack['id']}", headers=service.as_user(user))
    assert gone.status_code == 404
    await eventually(lambda: service.events(stack["id"])[-1:] == ["deleted"])
    moves = ["running", "stopping", "stopped", "starting", "running", "restarting", "running", "deleting"]
    assert service.events(stack["id"]) == ["created", *(f"state_changed:{state}" for state in moves), "deleted"]


async def test_a_stack_runs_limited_read_only_and_apart_and_sees_nothing_of_the_servers_environment(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "canary-7f3a")
    user = await service.new_user()
    limits = {"cpus": 0.25, "memory_mib": 64, "pids": 32}
    stack = await service.done(user, await service.create(user, limits=limits))
    client = docker.from_env()
    try:
        container = client.containers.list(filters={"label": f"telar.stack={stack['id']}"})[0]
        attributes = container.attrs
        host = attributes["HostConfig"]
        assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (250_000_000, 64 << 20, 32)
        assert host["ReadonlyRootfs"] is True
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["LogConfig"]["Config"] == {"max-file": "3", "max-size": "10m"}
        assert list(attributes["NetworkSettings"]["Networks"]) == [project_of(stack)]
        assert [(mount["Type"], mount["RW"]) for mount in attributes["Mounts"]] == [("bind", False)]
        assert container.labels["telar.owner"] == user
        assert "canary" not in str(attributes)
    finally:
        client.close()
    assert "It works" in await page((await service.get(user, stack["id"]))["url"])
    await service.act(user, stack["id"], "delete")


async def test_the_file_as_compose_resolves_it_passes_the_gate_too(service: Service) -> None:
    user = await service.new_user()
    stack = await service.done(user, await service.create(user))
    answer = await service.http.get(f"/api/v1/stacks/{stack['id']}/compose", headers=service.as_user(user))
    rendered = yaml.safe_load(answer.text)
    folder = service.settings.stacks_dir / UUID(stack["id"]).hex
    command = ["docker", "compose", "--file", str(folder / "docker-compose.yml"), "config"]
    resolved = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, check=True, env={"PATH": os.environ["PATH"], "HOME": "/root"}
    )
    mount = rendered["services"]["static"]["volumes"][0]
    grants = Grants(
        project=project_of(stack),
        publish_address="127.0.0.1",
        max_cpus=2,
        max_memory_bytes=2 << 30,
        max_pids=512,
        binds=frozenset({(mount["source"], mount["target"])}),
        host_ports=frozenset({stack["services"][0]["host_port"]}),
        labels=rendered["services"]["static"]["labels"],
    )
    assert violations(rendered, grants) == []
    assert violations(yaml.safe_load(resolved.stdout), grants) == []
    await service.act(user, stack["id"], "delete")


async def test_php_code_is_run(service: Service) -> None:
    require_images()
    user = await service.new_user()
    code = {"index.php": "<?php echo 6 * 7, ' ', getenv('APP_ENV');"}
    answer = await service.create(
        user, files=code, service_types="PHP", variables='{"app_env": "development"}', name="php"
    )
    stack = await service.done(user, answer)
    assert await page((await service.get(user, stack["id"]))["url"]) == "42 development"
    await service.act(user, stack["id"], "delete")


async def test_logs_are_streamed_and_followed(service: Service) -> None:
    user = await service.new_user()
    stack = await service.done(user, await service.create(user, files=SITE))
    shown = await service.get(user, stack["id"])
    await page(shown["url"] + "/?first")
    path, headers = f"/api/v1/stacks/{stack['id']}/logs", service.as_user(user)
    told = await service.http.get(path, headers=headers)
    assert told.headers["content-type"].startswith("text/event-stream")
    assert "event: log" in told.text
    assert "GET /?first" in told.text
    engine = DockerEngine(service.settings.docker_host, max_log_streams=1)
    followed: Any = engine.logs(project_of(stack), tail=0, follow=True)
    reading: asyncio.Task[Any] = asyncio.create_task(anext(followed))
    while not reading.done():  # the stream may open after a request: ask again until it has seen one
        await page(shown["url"] + "/?followed")
        await asyncio.wait({reading}, timeout=0.05)
    assert "GET /?followed" in reading.result().text
    with pytest.raises(TooManyLogStreams):
        await anext(engine.logs(project_of(stack), tail=0, follow=True))
    await followed.aclose()
    again = [line.text async for line in engine.logs(project_of(stack), tail=1, follow=False)]
    assert len(again) == 1
    await engine.close()
    await service.act(user, stack["id"], "delete")


async def test_logs_that_are_too_many_are_refused_before_their_stream_begins(own_database: str, tmp_path: Path) -> None:
    async with running(own_database, tmp_path, max_log_streams=1) as service:
        user = await service.new_user()
        text = "services: {a: {image: 'telar/nginx:1.26'}, b: {image: 'telar/nginx:1.26'}}"
        stack = await service.done(user, await service.create(user, compose=text, service_types=[]))
        path, headers = f"/api/v1/stacks/{stack['id']}/logs", service.as_user(user)
        refused = await service.http.get(path, headers=headers)
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/too-many-log-streams")
        assert (await service.http.get(path, headers=headers, params={"service": "a"})).status_code == 200
        await service.act(user, stack["id"], "delete")


async def test_another_owner_sees_nothing_and_an_administrator_all(service: Service) -> None:
    user, other = await service.new_user(), await service.new_user()
    stack = await service.done(user, await service.create(user))
    path = f"/api/v1/stacks/{stack['id']}"
    for method, called in (
        ("GET", path),
        ("GET", f"{path}/compose"),
        ("GET", f"{path}/logs"),
        ("POST", f"{path}/stop"),
        ("DELETE", path),
        ("GET", f"/service/{stack['number']}"),
        ("POST", f"/control-service/{stack['number']}/delete"),
    ):
        answer = await service.http.request(method, called, headers=service.as_user(other))
        assert answer.status_code == 404, (method, called)
    assert (await service.http.get("/api/v1/stacks", headers=service.as_user(other))).json()["items"] == []
    admin = service.as_user(other, role="ADMIN")
    assert (await service.http.get(path, headers=admin)).status_code == 200
    stale = await service.http.delete(path, headers={**service.as_user(user), "if-match": '"999"'})
    assert stale.status_code == 412
    await service.act(user, stack["id"], "delete")


async def test_the_older_clients_calls_deploy_show_and_control_a_stack(service: Service, remains: Remains) -> None:
    user = await service.new_user(external_id="student-7")
    headers = service.as_user(user)
    form = {
        "userid": "student-7",
        "service_name": "homepage",
        "service_types": ["Static"],
        "primary_app_type": "Static",
        "git_repo_url": "",
        "admin_pass": "secret",
    }
    files = {"zip_file": ("a.zip", zip_of(SITE), "application/zip")}
    made = await service.http.post("/service", headers=headers, data=form, files=files)
    assert made.status_code == 202, made.text
    assert (made.json()["status"], made.json()["state"]) == ("creating", "creating")
    assert (await service.ended(user, made.json()["operation_id"]))["state"] == "succeeded"
    number = made.json()["service_id"]
    shown = (await service.http.get(f"/service/{number}", headers=headers)).json()
    assert (shown["status"], shown["service_name"]) == ("enabled", "homepage")
    assert await page(shown["access_urls"][0]) == SITE["index.html"]
    assert len(shown["access_urls"]) == 1
    async with httpx.AsyncClient(trust_env=False, auth=("admin", "secret")) as web:
        files_page = await web.get(shown["stack"]["file_manager"]["url"] + "/index.html")
    assert files_page.text == SITE["index.html"]
    for control, status in (("shutdown", "disabled"), ("start", "enabled"), ("restart", "enabled")):
        answer = await service.http.post(f"/control-service/{number}/{control}", headers=headers)
        assert answer.status_code == 202, answer.text
        assert (await service.ended(user, answer.json()["operation_id"]))["state"] == "succeeded"
        assert (await service.http.get(f"/service/{number}", headers=headers)).json()["status"] == status
    answer = await service.http.post(f"/control-service/{number}/delete", headers=headers)
    await service.ended(user, answer.json()["operation_id"])
    assert remains(project_of(answer.json()["stack"])) == []


async def test_a_file_manager_stands_beside_a_new_stack_and_changes_what_it_serves(
    service: Service, remains: Remains
) -> None:
    user = await service.new_user()
    stack = await service.done(user, await service.create(user, files=SITE, file_manager=True))
    shown = await service.get(user, stack["id"])
    manager = shown["file_manager"]
    assert (manager["username"], manager["health"]) == ("admin", "healthy")
    assert manager["url"] not in shown["urls"]
    assert service.used(user) == {"stacks": 1, "cores": 1, "memory_mib": 256 + 128}
    login = (manager["username"], shown["variables"]["admin_pass"])
    async with httpx.AsyncClient(trust_env=False, auth=login) as web:
        assert (await web.put(f"{manager['url']}/index.html", content=b"<h1>changed</h1>")).status_code == 201
    async with httpx.AsyncClient(trust_env=False) as web:
        assert (await web.get(f"{manager['url']}/index.html")).status_code in (401, 403)
    assert await page(shown["url"]) == "<h1>changed</h1>"
    await service.act(user, stack["id"], "delete")
    assert remains(project_of(stack)) == []
    assert service.used(user) == {}


async def test_the_same_idempotency_key_makes_one_stack(service: Service) -> None:
    user = await service.new_user()
    headers = {"idempotency-key": "one-stack"}
    answers = await asyncio.gather(*(service.create(user, headers=headers) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["stack"]["id"] for answer in answers}) == 1
    stack = await service.done(user, answers[0])
    await service.act(user, stack["id"], "delete")


async def test_a_port_in_use_outside_telar_is_exchanged_for_another(
    own_database: str, tmp_path: Path, remains: Remains
) -> None:
    with contextlib.closing(socket.socket()) as foreign:
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        port = foreign.getsockname()[1]
        async with running(own_database, tmp_path, port_range_first=port, port_range_last=port) as service:
            user = await service.new_user()
            answer = await service.create(user)
            assert answer.json()["stack"]["services"][0]["host_port"] == port
        async with running(own_database, tmp_path, port_range_first=port, port_range_last=port + 20) as service:
            stack = await service.done(user, answer)
            shown = await service.get(user, stack["id"])
            assert port < shown["services"][0]["host_port"] <= port + 20
            assert "It works" in await page(shown["url"])
            await service.act(user, stack["id"], "delete")
            assert remains(project_of(stack)) == []


async def test_with_a_domain_a_stack_has_a_name_of_its_own_and_a_proxys_labels(
    own_database: str, tmp_path: Path
) -> None:
    async with running(own_database, tmp_path, domain="apps.example.org") as service:
        user = await service.new_user()
        stack = await service.done(user, await service.create(user, name="My Site!"))
        shown = await service.get(user, stack["id"])
        assert shown["url"] == "https://my-site-1.apps.example.org"
        assert len(shown["urls"]) == 2
        project = project_of(stack)
        with contextlib.closing(docker.from_env()) as client:
            labels = client.containers.list(filters={"label": f"telar.stack={stack['id']}"})[0].labels
        assert labels[f"traefik.http.routers.{project}.rule"] == "Host(`my-site-1.apps.example.org`)"
        assert labels[f"traefik.http.services.{project}.loadbalancer.server.port"] == "80"
        await service.act(user, stack["id"], "delete")
