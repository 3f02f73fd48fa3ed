"""Compose files of stacks' owners, on a real engine: run held in, checked in a dry run, refused by path."""

import contextlib
from pathlib import Path
from uuid import UUID

import docker
import httpx
import pytest
import yaml

from services.containers.domain.stacks import project_name
from tests.contract.containers.harness import SITE, Service, running, zip_of
from tests.integration.containers.conftest import Remains

pytestmark = pytest.mark.docker

FILE = """
services:
  web:
    image: telar/nginx:1.26
    depends_on: [cache]
    ports: ["80"]
    volumes: [".:/usr/share/nginx/html:ro"]
    environment: {GREETING: "${GREETING:-hello} $$HOME"}
    networks: [back]
  cache:
    image: telar/redis:8.0
    command: redis-server --save ''
    volumes: ["data:/data"]
    mem_limit: 64m
    networks: [back]
networks: {back: {internal: false}}
volumes: {data: {}}
"""


async def test_an_own_compose_file_runs_limited_and_labelled_with_the_code_of_a_zip(
    service: Service, remains: Remains
) -> None:
    user = await service.new_user()
    headers = service.as_user(user)
    form = {"name": "own", "compose": FILE, "variables": '{"GREETING": "hi $PATH"}', "file_manager": "false"}
    upload = {"zip_file": ("a.zip", zip_of(SITE), "application/zip")}
    answer = await service.http.post("/api/v1/stacks", headers=headers, data=form, files=upload)
    stack = await service.done(user, answer)
    shown = await service.get(user, stack["id"])
    assert (shown["state"], shown["health"], shown["primary_app_type"]) == ("running", "healthy", "web")
    assert [(one["name"], one["container_port"]) for one in shown["services"]] == [("web", 80), ("cache", None)]
    async with httpx.AsyncClient(trust_env=False) as web:
        assert (await web.get(shown["url"])).text == SITE["index.html"]
    assert service.used(user) == {"stacks": 1, "cores": 1, "memory_mib": 256 + 64}
    client = docker.from_env()
    try:
        found = client.containers.list(filters={"label": f"telar.stack={stack['id']}"})
        attributes = {one.labels["com.docker.compose.service"]: one.attrs for one in found}
    finally:
        client.close()
    web_host = attributes["web"]["HostConfig"]
    assert (web_host["Memory"], web_host["NanoCpus"], web_host["PidsLimit"]) == (256 << 20, 500_000_000, 128)
    assert attributes["cache"]["HostConfig"]["Memory"] == 64 << 20
    assert web_host["SecurityOpt"] == ["no-new-privileges:true"]
    assert "NET_RAW" in str(web_host["CapDrop"])
    assert "GREETING=hi $PATH $HOME" in attributes["web"]["Config"]["Env"]
    assert [(mount["Type"], mount["RW"]) for mount in attributes["web"]["Mounts"]] == [("bind", False)]

    path = f"/api/v1/stacks/{stack['id']}/redeploy"
    asked = {"compose": FILE.replace("hello", "bye"), "variables": {"GREETING": ""}}
    await service.done(user, await service.http.post(path, headers=headers, json=asked))
    text = (await service.http.get(f"/api/v1/stacks/{stack['id']}/compose", headers=headers)).text
    assert yaml.safe_load(text)["services"]["web"]["environment"] == {"GREETING": "bye $$HOME"}
    back = await service.http.post(f"/api/v1/stacks/{stack['id']}/rollback", headers=headers)
    await service.done(user, back)
    text = (await service.http.get(f"/api/v1/stacks/{stack['id']}/compose", headers=headers)).text
    assert yaml.safe_load(text)["services"]["web"]["environment"] == {"GREETING": "hi $$PATH $$HOME"}
    await service.act(user, stack["id"], "delete")
    assert remains(project_name(UUID(stack["id"]))) == []


@pytest.mark.parametrize("network", ["default", "front"])
async def test_a_proxys_labels_name_no_network_that_the_container_is_not_on(
    own_database: str, tmp_path: Path, network: str
) -> None:
    web = f"{{image: telar/nginx:1.26, ports: ['80'], networks: [{network}]}}"
    text = f"{{services: {{web: {web}}}, networks: {{{network}: {{}}}}}}"
    async with running(own_database, tmp_path, domain="apps.example.org") as service:
        user = await service.new_user()
        stack = await service.done(user, await service.create(user, compose=text, service_types=[]))
        with contextlib.closing(docker.from_env()) as client:
            container = client.containers.list(filters={"label": f"telar.stack={stack['id']}"})[0]
        await service.act(user, stack["id"], "delete")
    assert container.labels["traefik.enable"] == "true"
    named = {text for name, text in container.labels.items() if name.endswith(".network")}
    assert named <= container.attrs["NetworkSettings"]["Networks"].keys()


async def test_volumes_stay_if_they_are_to_be_kept(service: Service, remains: Remains) -> None:
    user = await service.new_user()
    stack = await service.done(
        user, await service.create(user, compose=FILE.replace(".:/usr", "data:/usr"), service_types=[])
    )
    path = f"/api/v1/stacks/{stack['id']}?keep_volumes=true"
    await service.done(user, await service.http.delete(path, headers=service.as_user(user)))
    project = project_name(UUID(stack["id"]))
    left = remains(project)
    client = docker.from_env()
    client.volumes.get(f"{project}_data").remove()
    client.close()
    assert left == [f"{project}_data"]


async def test_an_image_that_an_own_file_names_and_nobody_has_fails_and_leaves_nothing(
    service: Service, remains: Remains
) -> None:
    user = await service.new_user()
    text = "services: {a: {image: '127.0.0.1:9/no/such:1'}}"
    answer = await service.create(user, compose=text, service_types=[])
    operation = await service.ended(user, answer.json()["id"])
    assert (operation["state"], operation["error"]["type"]) == ("failed", "/problems/engine-failed")
    assert remains(project_name(UUID(answer.json()["stack"]["id"]))) == []
    assert service.used(user) == {}


async def test_a_host_port_asked_for_is_given_once(service: Service) -> None:
    user = await service.new_user()
    port = service.settings.port_range_last
    text = f"services: {{a: {{image: 'telar/nginx:1.26', ports: ['{port}:80']}}}}"
    stack = await service.done(user, await service.create(user, name="first", compose=text, service_types=[]))
    assert (await service.get(user, stack["id"]))["url"].endswith(f":{port}")
    clash = await service.create(user, name="second", compose=text, service_types=[])
    assert (clash.status_code, clash.json()["type"]) == (409, "/problems/host-port-taken")
    codeless = await service.create(user, compose="services: {a: {image: x, volumes: ['.:/c:ro']}}", service_types=[])
    assert (codeless.status_code, codeless.json()["type"]) == (422, "/problems/invalid-stack")
    privileged = await service.create(user, compose=text.replace(str(port), "80"), service_types=[])
    assert privileged.status_code == 422
    assert privileged.json()["errors"][0]["pointer"] == "/compose/services.a.ports"
    assert service.used(user)["stacks"] == 1
    await service.act(user, stack["id"], "delete")


async def test_a_service_has_the_time_to_end_that_its_file_gives_it(service: Service) -> None:
    user = await service.new_user()
    command = "[sh, -c, \"trap 'sleep 11; exit 7' TERM; while :; do sleep 0.1; done\"]"
    text = f"services: {{a: {{image: 'telar/nginx:1.26', command: {command}, stop_grace_period: 90s,"
    text += " stop_signal: SIGTERM, healthcheck: {disable: true}}}"
    stack = await service.done(user, await service.create(user, name="slow", compose=text, service_types=[]))
    await service.act(user, stack["id"], "stop")
    assert (await service.get(user, stack["id"]))["services"][0]["exit_code"] == 7, "it was killed before"
    await service.act(user, stack["id"], "delete")
