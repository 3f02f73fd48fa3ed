"""The same stacks on a Swarm of one node: deployed with `docker stack deploy`, followed, changed, removed."""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import docker
import httpx
import pytest

from services.containers.domain.stacks import project_name
from tests.chaos.own_engine import own_engine
from tests.contract.containers.harness import SITE, Service, running, zip_of

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
DEADLINE_S = 150
IMAGES = ["telar/nginx:1.26", "telar/copyparty:1.20", "telar/nodejs:20", "telar/mariadb:11.8"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of an engine that manages a swarm of one node.

    It is an engine of the test's own: when a swarm is left, an engine (20.10) forgets the names of all that runs on it,
    and services of others do not find each other any more.
    """
    with (
        tempfile.TemporaryDirectory(prefix="telar-") as folder,
        own_engine(Path(folder), IMAGES) as address,
        contextlib.closing(docker.DockerClient(address)) as client,
    ):
        client.swarm.init(advertise_addr="127.0.0.1", listen_addr="127.0.0.1:2378")
        yield address
        client.swarm.leave(force=True)
        client.networks.get("docker_gwbridge").remove()


@pytest.fixture(scope="module")
def swarm(address: str) -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.DockerClient(address)) as client:
        yield client


@pytest.fixture(scope="module")
async def service(address: str, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    folder: Path = tmp_path_factory.mktemp("swarm")
    options = {"orchestrator": "swarm", "docker_host": address, "healthy_timeout_s": 90}
    async with running(database_url, folder, **options) as service:
        yield service


def left_of(swarm: docker.DockerClient, project: str) -> list[str]:
    wanted: dict[str, Any] = {"label": f"com.docker.stack.namespace={project}"}
    found = [*swarm.services.list(filters=wanted), *swarm.containers.list(all=True, filters=wanted)]
    found += [*swarm.networks.list(filters=wanted), *swarm.volumes.list(filters=wanted)]
    return [str(one.name) for one in found]


async def page(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as web:
        return (await web.get(url)).text


async def act(service: Service, user: str, stack: dict[str, Any], verb: str, **sent: Any) -> None:
    path = f"/api/v1/stacks/{stack['id']}"
    method, path = ("DELETE", path) if verb == "delete" else ("POST", f"{path}/{verb}")
    answer = await service.http.request(method, path, headers=service.as_user(user), **sent)
    await service.done(user, answer, DEADLINE_S)


async def test_a_site_is_deployed_followed_redeployed_rolled_back_and_deleted(
    service: Service, swarm: docker.DockerClient, eventually: Callable[..., Awaitable[None]]
) -> None:
    user = await service.new_user()
    stack = await service.done(user, await service.create(user, files=SITE, file_manager="true"), DEADLINE_S)
    project = project_name(UUID(stack["id"]))
    shown = await service.get(user, stack["id"])
    assert (shown["state"], shown["health"], shown["file_manager"]["health"]) == ("running", "healthy", "healthy")
    assert await page(shown["url"]) == SITE["index.html"]
    logs = f"/api/v1/stacks/{stack['id']}/logs?service=static"

    async def is_told() -> bool:  # nodes send their logs to the manager a moment later
        return "GET / HTTP" in (await service.http.get(logs, headers=service.as_user(user))).text

    await eventually(is_told)
    await act(service, user, stack, "stop")
    assert (await service.get(user, stack["id"]))["health"] == "stopped"
    await act(service, user, stack, "start")
    assert await page(shown["url"]) == SITE["index.html"]
    upload = {"zip_file": ("b.zip", zip_of({"index.html": "second"}), "application/zip")}
    await act(service, user, stack, "redeploy", files=upload)
    assert await page(shown["url"]) == "second"
    await act(service, user, stack, "rollback")
    assert await page(shown["url"]) == SITE["index.html"]
    await act(service, user, stack, "delete")
    assert left_of(swarm, project) == []


async def test_an_app_starts_after_its_build_and_its_database(service: Service, swarm: docker.DockerClient) -> None:
    user = await service.new_user()
    server = "require('http').createServer((_, r) => r.end(process.env.DB_HOST)).listen(process.env.PORT)"
    code = {"package.json": '{"scripts": {"start": "node s.js"}}', "s.js": server}
    answer = await service.create(user, files=code, service_types="nodejs,mariadb")
    stack = await service.done(user, answer, DEADLINE_S)
    shown = await service.get(user, stack["id"])
    assert await page(shown["url"]) == "mariadb"
    await act(service, user, stack, "delete")
    assert left_of(swarm, project_name(UUID(stack["id"]))) == []
