"""The images of deploy/airgap by themselves: official settings, health checks, first runs, and how they stop."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from services.containers.adapters.engine import DockerEngine
from tests.contract.containers.deploying import require_images

pytestmark = [pytest.mark.docker, pytest.mark.long]

Start = Callable[..., Container]
Healthy = Callable[[Container], Awaitable[None]]
_KILLED = 137
_VOLUME = "telar-test-image-data"


@dataclass(frozen=True)
class Case:
    """An image as its official twin is started: with its settings and as the user it has by itself."""

    image: str
    environment: dict[str, str] = field(default_factory=dict)
    data: str | None = None
    user: str = ""


CASES = [
    Case("nginx:1.26"),
    Case("php:8.4"),
    Case("mariadb:11.8", {"MYSQL_RANDOM_ROOT_PASSWORD": "yes"}, "/var/lib/mysql", "999"),
    Case("postgres:17", {"POSTGRES_PASSWORD": "x"}, "/var/lib/postgresql/data", "999"),
    Case("redis:8.0", {"REDIS_PASSWORD": 'a "b" \\c'}, "/data"),
    Case("ferretdb:1.24", {"MONGO_INITDB_ROOT_USERNAME": "a", "MONGO_INITDB_ROOT_PASSWORD": "b"}, "/data/db"),
    Case("wordpress:6.8", {"WORDPRESS_DB_HOST": "nowhere"}, "/var/www/html"),
    Case("copyparty:1.20", {"FILEBROWSER_ADMIN_PASSWORD": "secret"}),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    require_images()
    with contextlib.closing(docker.from_env()) as client:
        yield client


@pytest.fixture
def start(engine: docker.DockerClient) -> Iterator[Start]:
    """Starts containers that go, with their data, when the test ends."""
    made: list[Container] = []

    def run(image: str, *command: str, data: str | None = None, **options: Any) -> Container:
        mounts = {_VOLUME: {"bind": data, "mode": "rw"}} if data else {}
        mounts |= options.pop("mounts", {})
        made.append(engine.containers.run(f"telar/{image}", [*command], detach=True, volumes=mounts, **options))
        return made[-1]

    yield run
    for container in made:
        container.remove(force=True, v=True)
    for volume in engine.volumes.list(filters={"name": _VOLUME}):
        volume.remove()


@pytest.fixture
async def healthy() -> AsyncIterator[Healthy]:
    """Waits until a container's own health check passes; fails with its log."""
    looking = DockerEngine("unix:///var/run/docker.sock", max_log_streams=1)

    async def wait(container: Container) -> None:
        deadline = asyncio.get_running_loop().time() + 40
        while not await looking.check_health(str(container.id)):
            await asyncio.to_thread(container.reload)
            assert container.status in ("created", "running"), container.logs().decode()
            assert asyncio.get_running_loop().time() < deadline, container.logs().decode()
            await asyncio.sleep(0.1)

    yield wait
    await looking.close()


@pytest.fixture
def settings_folder(tmp_path: Path) -> Path:
    """A password in a file, and a folder of statements for the first run."""
    tmp_path.chmod(0o755)
    (tmp_path / "password").write_text("from a 'file'\n")
    (tmp_path / "init").mkdir()
    (tmp_path / "init/1.sql").write_text("CREATE TABLE made (n INT); INSERT INTO made VALUES (42);")
    return tmp_path


def said(container: Container, *command: str, user: str = "") -> str:
    """What a command in the container prints; it has to succeed."""
    code, output = container.exec_run([*command], user=user)
    assert code == 0, output.decode()
    return str(output.decode())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.image} {case.user}")
async def test_an_image_gets_healthy_stops_in_time_and_starts_again_on_its_data(
    start: Start, healthy: Healthy, case: Case
) -> None:
    container = start(case.image, environment=case.environment, data=case.data, user=case.user)
    assert container.attrs["Config"]["Healthcheck"]["Test"]
    for _ in range(2):
        await healthy(container)
        await asyncio.to_thread(container.stop, timeout=10)
        container.reload()
        assert container.attrs["State"]["ExitCode"] != _KILLED
        container.start()


@pytest.mark.parametrize(("image", "program"), [("nodejs:20", "node"), ("python:3.13", "python")])
def test_an_image_for_code_runs_it_as_a_user_without_rights(start: Start, image: str, program: str) -> None:
    container = start(image, "sh", "-c", f"{program} --version; id -u")
    assert container.wait(timeout=30)["StatusCode"] == 0
    assert container.logs().decode().splitlines()[1] == "1000"


async def test_mariadb_reads_its_settings_from_files_and_runs_what_lies_in_its_init_folder(
    start: Start, healthy: Healthy, settings_folder: Path
) -> None:
    settings = {
        "MARIADB_ROOT_PASSWORD_FILE": "/run/secrets/password",
        "MARIADB_PASSWORD_FILE": "/run/secrets/password",
        "MARIADB_USER": "app",
        "MARIADB_DATABASE": "my_app",
    }
    mounts = {
        str(settings_folder / "password"): {"bind": "/run/secrets/password", "mode": "ro"},
        str(settings_folder / "init"): {"bind": "/docker-entrypoint-initdb.d", "mode": "ro"},
    }
    container = start("mariadb:11.8", environment=settings, data="/var/lib/mysql", mounts=mounts)
    await healthy(container)
    ask = ("mariadb", "--host=127.0.0.1", "-pfrom a 'file'", "-N", "-B")
    assert said(container, *ask, "-uapp", "my_app", "-e", "SELECT n FROM made").strip() == "42"
    assert "my_app" in said(container, *ask, "-uroot", "-e", "SHOW DATABASES")
    code, output = container.exec_run([*ask, "-uapp", "-e", "CREATE DATABASE my2app"])
    assert code != 0, output


async def test_a_first_run_that_was_killed_is_begun_again(start: Start, healthy: Healthy) -> None:
    settings = {"MARIADB_ROOT_PASSWORD": "x", "MARIADB_DATABASE": "shop"}
    first = start("mariadb:11.8", environment=settings, data="/var/lib/mysql")
    deadline = asyncio.get_running_loop().time() + 30
    while first.exec_run(["test", "-d", "/var/lib/mysql/mysql"])[0] != 0:
        assert asyncio.get_running_loop().time() < deadline
    first.kill()
    second = start("mariadb:11.8", environment=settings, data="/var/lib/mysql")
    await healthy(second)
    assert "shop" in said(second, "mariadb", "-e", "SHOW DATABASES")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("mariadb:11.8", "MARIADB_ROOT_PASSWORD is not set"),
        ("postgres:17", "POSTGRES_PASSWORD is not set"),
        ("copyparty:1.20", "FILEBROWSER_ADMIN_PASSWORD is not set"),
    ],
)
def test_an_image_that_would_let_everybody_in_says_what_is_missing(start: Start, image: str, words: str) -> None:
    container = start(image)
    assert container.wait(timeout=30)["StatusCode"] == 1
    assert words in container.logs().decode()


async def test_no_password_shows_in_the_list_of_processes(start: Start, healthy: Healthy) -> None:
    secret = f"canary-{os.urandom(4).hex()}"
    for image, name in (("redis:8.0", "REDIS_PASSWORD"), ("copyparty:1.20", "FILEBROWSER_ADMIN_PASSWORD")):
        container = start(image, environment={name: secret})
        await healthy(container)
        shown = await asyncio.to_thread(container.top)
        assert secret not in str(shown["Processes"])
        assert secret not in container.logs().decode()


async def test_redis_lets_in_whoever_knows_the_password_and_nobody_else(start: Start, healthy: Healthy) -> None:
    container = start("redis:8.0", environment={"REDIS_PASSWORD": 'a "b" \\c'})
    await healthy(container)
    assert said(container, "redis-cli", "--no-auth-warning", "-a", 'a "b" \\c', "PING").strip() == "PONG"
    assert "NOAUTH" in said(container, "redis-cli", "GET", "x")
