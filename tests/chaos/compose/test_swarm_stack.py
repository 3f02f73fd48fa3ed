"""The suite on Docker Swarm by deploy/swarm/stack.yml: replicas, placement, secrets, updates that start the new first.

It runs on an engine of its own, and the gateway's port is its node's: a routing mesh needs IPVS in the kernel.
"""

import contextlib
import os
import secrets
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from cli.secrets import write as write_secrets
from libs.common.testing.needs import require_root
from libs.common.testing.ports import free_port
from tests.chaos.figures import Figures
from tests.chaos.own_engine import own_engine
from tests.corpora.images import disks
from tests.e2e.callers import Caller, Within, asked, caller_of, client_of, uploaded
from tests.e2e.composed import PROJECT, SERVICES, UID, build_images, free_subnet
from tests.e2e.conftest import RunningSuite

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
IMAGES = ("telar/telar:latest", "telar/postgres:17", "telar/rabbitmq:4.0")
FILES = ("deploy/swarm/stack.yml", "deploy/swarm/host-port.yml", "deploy/airgap/stack.yml")
STORES = ("postgres", "rabbitmq", "mongodb")
WANTED = Counter({"migrate": 0, **dict.fromkeys(STORES, 1), **dict.fromkeys(SERVICES, 2), "gateway": 1})
START_S = 300
UPDATE_S = 240


@dataclass
class Swarm:
    """A Swarm of one node with the suite as its stack `telar`."""

    address: str
    client: docker.DockerClient
    url: str
    password: str
    environment: dict[str, str]

    def docker(self, *arguments: str, timeout_s: float = 60) -> str:
        command = ["docker", "--host", self.address, *arguments]
        done = subprocess.run(
            command, env=self.environment, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=timeout_s
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def deploy(self) -> None:
        files = [option for file in FILES for option in ("-c", file)]
        self.docker("stack", "deploy", "--resolve-image", "never", *files, "telar")

    def running(self) -> Counter[str]:
        """How many tasks of each service run; Swarm says so of what is healthy."""
        told = self.docker("service", "ls", "--format", "{{.Name}} {{.Replicas}}").split()
        return Counter(
            {
                name.removeprefix("telar_"): int(replicas.partition("/")[0])
                for name, replicas in zip(told[::2], told[1::2], strict=True)
            }
        )

    def update(self, service: str) -> dict[str, Any]:
        """How the last update of a service stands."""
        found = self.client.services.list(filters={"name": f"telar_{service}"})[0]
        return dict(found.attrs.get("UpdateStatus") or {})

    def containers(self, service: str) -> set[str]:
        label = f"com.docker.swarm.service.name=telar_{service}"
        return {str(one.id) for one in self.client.containers.list(filters={"label": label})}


@pytest.fixture(scope="module")
def swarm() -> Iterator[Swarm]:
    require_root("an engine of its own and its bridge")
    build_images()
    with (
        tempfile.TemporaryDirectory(prefix="telar-swarm-") as name,
        own_engine(Path(name), IMAGES) as address,
        contextlib.closing(docker.DockerClient(address)) as client,
    ):
        folder = Path(name)
        client.swarm.init(advertise_addr="127.0.0.1", listen_addr="127.0.0.1:2378")
        node = client.nodes.list()[0]
        node.update({**node.attrs["Spec"], "Labels": {"telar.data": "true"}})
        write_secrets(folder / "secrets", lab=False)
        (folder / "stacks").mkdir()
        os.chown(folder / "stacks", UID, UID)
        port = free_port()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TELAR_", "DOCKER_"))},
            "TELAR_PORT": str(port),
            "TELAR_SUBNET": free_subnet(),
            "TELAR_SECRETS": str(folder / "secrets"),
            "TELAR_STACKS_DIR": str(folder / "stacks"),
            "TELAR_DOCKER_GID": str(Path("/var/run/docker.sock").stat().st_gid),
            "TELAR_CONTAINERS_ORCHESTRATOR": "compose",
            "TELAR_GATEWAY_RATE_PER_SECOND": "10000",
            "TELAR_GATEWAY_RATE_BURST": "10000",
        }
        password = (folder / "secrets" / "telar_admin_password").read_text().strip()
        try:
            yield Swarm(address, client, f"http://127.0.0.1:{port}", password, environment)
        finally:
            client.swarm.leave(force=True)
            client.networks.get("docker_gwbridge").remove()


@pytest.fixture(scope="module")
def client(swarm: Swarm, within: Within) -> Iterator[Caller]:
    """A user of the deployed suite."""
    swarm.deploy()
    within(lambda: swarm.running() == WANTED, START_S)
    within(lambda: _status(swarm, "/api/v1/health") == 200, 60)
    suite = RunningSuite(url=swarm.url, username="admin", password=swarm.password)
    admin = caller_of(suite, suite.username, suite.password)
    caller = client_of(suite, admin)
    yield caller
    admin.http.close()
    caller.http.close()


@pytest.fixture(scope="module")
def image(client: Caller) -> str:
    """The path of an uploaded image."""
    return uploaded(client, disks.raw_disk(1 << 20) + secrets.token_bytes(1 << 20))


def test_what_one_service_does_reaches_the_others(client: Caller, image: str, within: Within) -> None:
    assert client.http.get(image).json()["name"] == "kept"
    within(lambda: client.usage() == {"image": 1}, 30)


def test_replicas_are_replaced_while_requests_go_on(
    swarm: Swarm, client: Caller, image: str, within: Within, figures: Figures
) -> None:
    before = swarm.containers("images")
    with asked(client, image) as statuses:
        swarm.docker("service", "update", "--detach", "--force", "telar_images")
        within(lambda: swarm.update("images").get("State") == "completed", UPDATE_S)
    after = swarm.containers("images")
    figures.note("Swarm: both replicas of images replaced", "start-first", requests=statuses.total(), failed=0)
    assert set(statuses) == {200}
    assert len(after) == 2
    assert not before & after


def test_an_update_that_does_not_become_healthy_is_taken_back(
    swarm: Swarm, client: Caller, image: str, within: Within
) -> None:
    before = swarm.containers("images")
    with asked(client, image) as statuses:
        swarm.docker("service", "update", "--detach", "--args", "serve nothing", "telar_images")
        within(lambda: swarm.update("images").get("State") == "rollback_completed", UPDATE_S)
    assert set(statuses) == {200}
    assert before & swarm.containers("images")


def test_a_changed_secret_comes_with_another_version(swarm: Swarm, client: Caller, image: str, within: Within) -> None:
    before = {name: swarm.containers(name) for name in SERVICES}
    file = Path(swarm.environment["TELAR_SECRETS"]) / "telar_service_secret"
    file.write_text(secrets.token_urlsafe(32) + "\n")
    swarm.environment["TELAR_SECRETS_VERSION"] = "2"
    swarm.deploy()
    within(lambda: not any(before[name] & swarm.containers(name) for name in SERVICES), UPDATE_S)
    within(lambda: swarm.running() == WANTED, UPDATE_S)
    within(lambda: _status(swarm, "/api/v1/health") == 200, 120)
    assert client.http.get(image).json()["name"] == "kept"
    for name in SERVICES:
        for container in swarm.containers(name):
            read = ("exec", container, "cat", "/run/secrets/telar_service_secret")
            assert swarm.docker(*read).strip() == file.read_text().strip()


def _status(swarm: Swarm, path: str) -> int:
    """What the gateway answers; 0 while it does not."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{swarm.url}{path}", trust_env=False).status_code
    return 0
