"""The suite as one container per service, from docker-compose.yml, on images built here: started, looked into, removed.

Containers are reached by their own addresses on the engine's bridges, so that tests can ask each service, the broker's
far ends and the lab as they ask the embedded suite's. That needs Linux, and root for what lies in volumes.
"""

import ipaddress
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from docker.models.containers import Container

from cli.secrets import write as write_secrets
from libs.common.testing.needs import require_root
from libs.common.testing.ports import free_port
from libs.common.testing.stack import require_engine

PROJECT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "deploy/airgap/compose.yml")
SERVICES = ("auth", "images", "vms", "containers", "fetcher")
START_TIMEOUT_S = 300
UID = 10_001
"""Whose processes run in Telar's image."""
_IMAGES = ("telar", "postgres", "rabbitmq")


def build_images() -> str:
    """Build what is missing or not current; gives the id of Telar's own image."""
    require_engine()
    script = PROJECT / "deploy" / "airgap" / "build.sh"
    built = subprocess.run([str(script), *_IMAGES], capture_output=True, text=True, check=False, timeout=900)
    assert built.returncode == 0, built.stdout + built.stderr
    with closing(docker.from_env()) as client:
        return str(client.images.get("telar/telar:latest").id)


def free_subnet(third: str = "10.213") -> str:
    """A network of 254 hosts that no network of the engine overlaps."""
    with closing(docker.from_env()) as client:
        taken = [
            ipaddress.ip_network(config["Subnet"])
            for network in client.networks.list()
            for config in network.attrs["IPAM"]["Config"] or ()
            if ":" not in config["Subnet"]
        ]
    while True:
        wanted = ipaddress.ip_network(f"{third}.{1 + secrets.randbelow(250)}.0/24")
        if not any(wanted.overlaps(one) for one in taken):
            return str(wanted)


@dataclass
class Composed:
    """One Compose project with its own port, subnet, secrets and folders."""

    folder: Path
    image: str
    replicas: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = f"telar-test-{secrets.token_hex(4)}"
        self.subnet = free_subnet()
        self.secrets = self.folder / "secrets"
        self.stacks = self.folder / "stacks"
        self.stacks.mkdir()
        os.chown(self.stacks, UID, UID)
        write_secrets(self.secrets, lab=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TELAR_", "COMPOSE_"))},
            "COMPOSE_PROJECT_NAME": self.name,
            "COMPOSE_FILE": ":".join(FILES),
            "COMPOSE_PROFILES": "lab",
            "COMPOSE_ENV_FILES": "/dev/null",
            "TELAR_IMAGE": self.image,
            "TELAR_PORT": str(free_port()),
            "TELAR_SUBNET": self.subnet,
            "TELAR_SECRETS": str(self.secrets),
            "TELAR_STACKS_DIR": str(self.stacks),
            "TELAR_DOCKER_GID": str(Path("/var/run/docker.sock").stat().st_gid),
            "TELAR_OUTBOUND_ALLOW_NETWORKS": self.subnet,
            "TELAR_GATEWAY_RATE_PER_SECOND": "10000",
            "TELAR_GATEWAY_RATE_BURST": "10000",
            "TELAR_GATEWAY_TOKEN_SECONDS": "3600",
            "TELAR_LAB_TIME_SCALE": "0.1",
            **{f"TELAR_{name.upper()}_REPLICAS": str(count) for name, count in self.replicas.items()},
            **self.settings,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['TELAR_PORT']}"

    @property
    def host(self) -> str:
        """This machine's address as the containers know it."""
        return str(next(ipaddress.ip_network(self.subnet).hosts()))

    @property
    def password(self) -> str:
        return (self.secrets / "telar_admin_password").read_text().strip()

    def run(self, *command: str, timeout_s: float = 120) -> str:
        """Run a command that asks docker compose; gives what it prints, fails with what it complains of."""
        done = subprocess.run(
            command, env=self.environment, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=timeout_s
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-4000:]}\n{self._troubled()}"
        return done.stdout

    def compose(self, *arguments: str, timeout_s: float = 120) -> str:
        return self.run("docker", "compose", *arguments, timeout_s=timeout_s)

    def up(self, *services: str) -> None:
        """Start what is not running, and wait until everything is healthy."""
        wait = ("--wait", "--wait-timeout", str(START_TIMEOUT_S))
        self.compose("up", "-d", "--quiet-pull", *wait, *services, timeout_s=START_TIMEOUT_S + 60)

    def down(self) -> None:
        """Remove everything that the project made."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", timeout_s=180)

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """What the engine knows of the project's containers."""
        return _inspected(self.name, service)

    def addresses(self, service: str) -> list[str]:
        """Where each replica of a service is reached from this machine."""
        networks = [one["NetworkSettings"]["Networks"] for one in self.containers(service)]
        shared = f"{self.name}_telar"
        return [(one.get(shared) or next(iter(one.values())))["IPAddress"] for one in networks]

    def volume(self, name: str) -> Path:
        with closing(docker.from_env()) as client:
            return Path(client.volumes.get(f"{self.name}_{name}").attrs["Mountpoint"])

    def remove_volume(self, name: str) -> None:
        with closing(docker.from_env()) as client:
            client.volumes.get(f"{self.name}_{name}").remove()

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()

    def data_dir(self) -> Path:
        """A folder like the embedded suite's, as far as tests look into it."""
        folder = self.folder / "data"
        (folder / "pvesim").mkdir(parents=True)
        (folder / "secrets.json").write_text(json.dumps({"service_secret": self.secret("telar_service_secret")}))
        token = {"token_secret": self.secret("telar_pvesim_token_secret")}
        (folder / "pvesim" / "secrets.json").write_text(json.dumps(token))
        (folder / "fetcher").symlink_to(self.volume("fetcher") / "fetcher")
        (folder / "stacks").symlink_to(self.stacks)
        return folder

    def logs(self) -> str:
        return self.compose("logs", "--no-color", "--no-log-prefix")

    def _troubled(self) -> str:
        """The last words of whatever is not healthy."""
        told = []
        for one in self.containers():
            state = one["State"]
            health = state.get("Health", {}).get("Status", "healthy")
            if (state["Running"] and health == "healthy") or (not state["Running"] and state["ExitCode"] == 0):
                continue
            with closing(docker.from_env()) as client:
                tail = client.containers.get(one["Id"]).logs(tail=30).decode(errors="replace")
            told.append(f"{one['Name']} ({state['Status']}, {health}):\n{tail}")
        return "\n".join(told)


def _inspected(project: str, service: str | None) -> list[dict[str, Any]]:
    labels = [f"com.docker.compose.project={project}"]
    if service is not None:
        labels.append(f"com.docker.compose.service={service}")
    with closing(docker.from_env()) as client:
        found: list[Container] = client.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
        return [one.attrs for one in found]


@contextmanager
def composed(replicas: Mapping[str, int], **settings: str) -> Iterator[Composed]:
    """A healthy suite in containers; nothing of it remains afterwards."""
    require_root("giving the stacks' folder to the containers' user, and looking into volumes,")
    image = build_images()
    folder = Path(tempfile.mkdtemp(prefix="telar-compose-"))
    suite = Composed(folder, image, replicas, settings)
    try:
        suite.up()
        _await_every_replica(suite)
        yield suite
    finally:
        try:
            suite.down()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _await_every_replica(suite: Composed) -> None:
    """Wait until the gateway finds all services ready: it asks for their addresses every two seconds."""
    deadline = time.monotonic() + 60
    while (health := httpx.get(f"{suite.url}/api/v1/health", trust_env=False)).status_code != 200:
        if time.monotonic() > deadline:
            pytest.fail(f"the gateway does not find all services ready: {health.text}")
        time.sleep(0.2)
