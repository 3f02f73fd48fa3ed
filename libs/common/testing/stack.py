"""Real RabbitMQ and PostgreSQL in containers, for tests that need the far end itself.

`with run_rabbitmq() as broker:` and `with run_postgresql() as server:` give a handle that can be killed and
started again on the same port with the same data. Every call here blocks: from a test that keeps its event loop
busy, call it through `asyncio.to_thread`.

Settings (environment): `TELAR_TEST_RABBITMQ_IMAGE`, `TELAR_TEST_POSTGRES_IMAGE` (default: the image that
`deploy/airgap/build.sh` makes if the engine has it, else the official one).
"""

import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self, cast

import docker
import docker.errors
import psycopg
from docker.models.containers import Container
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from libs.common.testing.needs import missing
from libs.common.testing.ports import free_port

_LABEL = "telar.test.owner"
_UNIX = "unix://"
_POLL_S = 0.02
_AMQP_PORT = 5672
_POSTGRES_PORT = 5432
# Protocol header of AMQP 0-9-1 (specification, 4.2.2); a ready broker answers with a method frame, whose type is 1.
_AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"


def engine_available() -> str | None:
    """Return None when a Docker engine answers, else the reason why none does and what to do."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    try:
        if host.startswith(_UNIX):
            # docker-py leaves its socket open when nobody listens, which Python then warns of.
            with closing(socket.socket(socket.AF_UNIX)) as probe:
                probe.connect(host.removeprefix(_UNIX))
        with closing(docker.from_env(timeout=60)) as client:
            client.ping()
    except (docker.errors.DockerException, OSError) as error:
        return f"no Docker engine answers at {host} ({error}); deploy/local/engine.sh sets one up"
    return None


def require_engine() -> None:
    """End the running test where no Docker engine answers."""
    if reason := engine_available():
        missing(reason)


def _image(setting: str, built: str, official: str) -> str:
    """The image to run: what `setting` names, else `built` if the engine has it, else `official`, pulled if need be."""
    require_engine()
    _remove_leftovers()
    wanted = os.environ.get(setting)
    with closing(docker.from_env()) as client:
        for image in [wanted] if wanted else [built, official]:
            if client.images.list(name=image):
                return image
        try:
            client.images.pull(wanted or official)
        except docker.errors.APIError as error:
            missing(f"the image {wanted or official} cannot be pulled ({error}); deploy/airgap/build.sh makes {built}")
    return wanted or official


def _remove_leftovers() -> None:
    """Remove containers of test runs on this machine that were killed before they could clean up."""
    host = socket.gethostname()
    with closing(docker.from_env()) as client:
        for container in client.containers.list(all=True, filters={"label": _LABEL}, ignore_removed=True):
            owner_host, _, pid = container.labels[_LABEL].rpartition(":")
            if owner_host == host and not Path(f"/proc/{pid}").exists():
                container.remove(force=True, v=True)


class Backend(ABC):
    """A server in a container, published on one port for all its life."""

    def __init__(self, image: str, port: int, environment: dict[str, str]) -> None:
        # The reaper is one more image to have; the context managers and `_remove_leftovers` do its work.
        testcontainers_config.ryuk_disabled = True
        self._runner = DockerContainer(image, env=environment)
        self.host = self._runner.get_docker_client().host()
        # The engine gives a random port anew at every start, so the port is fixed here.
        self.port = free_port()
        self._inner_port = port
        address = "127.0.0.1" if self.host == "localhost" else ""
        self._runner.ports[str(port)] = (address, self.port)  # type: ignore[assignment] # docker-py takes the pair
        # RabbitMQ's data folder is named after the host: with another name the data would be lost.
        self._runner.with_kwargs(hostname="backend", labels={_LABEL: f"{socket.gethostname()}:{os.getpid()}"})

    @property
    def _container(self) -> Container:
        return self._runner.get_wrapped_container()

    def direct(self, url: str) -> str:
        """The URL by the container's own address, past the engine's forwarder: for a client on the engine's machine."""
        self._container.reload()
        (network,) = self._container.attrs["NetworkSettings"]["Networks"].values()
        return url.replace(f"{self.host}:{self.port}", f"{network['IPAddress']}:{self._inner_port}")

    def __enter__(self) -> Self:
        try:
            self._runner.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def kill(self) -> None:
        """End the server with SIGKILL; its data stays."""
        self._container.kill("SIGKILL")
        self._container.wait()

    def start(self) -> None:
        """Start the killed server on the same port; returns before it is ready."""
        self._container.start()

    def restart(self, timeout_s: float = 60) -> None:
        """Stop the server as its operator would, start it again and wait till it is ready."""
        self._container.restart()
        self.wait_ready(timeout_s)

    def stop(self) -> None:
        """Remove the container and its data."""
        self._runner.stop(force=True, delete_volume=True)

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Wait till the server serves clients. Raises TimeoutError, or RuntimeError when its process has ended."""
        deadline = time.monotonic() + timeout_s
        while not self._is_ready():
            self._container.reload()
            if self._container.status in {"exited", "dead"}:
                raise RuntimeError(f"{self._runner.image} ended:\n{self._last_words()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._runner.image} is not ready after {timeout_s} s:\n{self._last_words()}")
            time.sleep(_POLL_S)

    def _last_words(self) -> str:
        return self._container.logs(tail=20).decode(errors="replace")

    @abstractmethod
    def _is_ready(self) -> bool: ...


class RabbitMq(Backend):
    """A broker without plugins and configuration files, which start slowly; durable data survives `kill`."""

    def __init__(self, image: str) -> None:
        self._password = secrets.token_hex(16)
        environment = {
            "RABBITMQ_DEFAULT_USER": "telar",
            "RABBITMQ_DEFAULT_PASS": self._password,
            "RABBITMQ_ENABLED_PLUGINS_FILE": "/nonexistent",
            "RABBITMQ_CONFIG_FILE": "/nonexistent",
            "RABBITMQ_CONFIG_FILES": "/nonexistent",
        }
        super().__init__(image, _AMQP_PORT, environment)

    @property
    def amqp_url(self) -> str:
        return f"amqp://telar:{self._password}@{self.host}:{self.port}/"

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl with `arguments` and return what it prints. Takes 1-2 s."""
        result = self._container.exec_run(["rabbitmqctl", "--quiet", *arguments])
        output = cast("bytes", result.output).decode(errors="replace")
        if result.exit_code != 0:
            raise RuntimeError(f"rabbitmqctl {arguments[0]} failed: {output}")
        return output

    def sync_register(self) -> None:
        """Make quorum queues declared till now safe from `kill`; call it between declaring and killing.

        RabbitMQ (4.0 at least) keeps its register of quorum queues in a file that it writes about a second after a
        declaration. Killed before, it comes back with the queue but without its messages, confirmed ones too.
        """
        self.ctl("eval", "[ok = dets:sync(Table) || Table <- dets:all()].")

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as connection:
                connection.sendall(_AMQP_HEADER)
                return connection.recv(1) == _METHOD_FRAME
        except OSError:
            return False


class PostgresContainer(Backend):
    """A PostgreSQL server with one superuser and one database, both named telar."""

    def __init__(self, image: str) -> None:
        self._password = secrets.token_hex(16)
        environment = {
            "POSTGRES_USER": "telar",
            "POSTGRES_PASSWORD": self._password,
            "POSTGRES_INITDB_ARGS": "--no-sync",
        }
        super().__init__(image, _POSTGRES_PORT, environment)

    @property
    def dsn(self) -> str:
        """A libpq URI, to which SQLAlchemy's driver name may be added (`postgresql+psycopg://…`)."""
        return f"postgresql://telar:{self._password}@{self.host}:{self.port}/telar"

    def _is_ready(self) -> bool:
        try:
            with psycopg.connect(self.dsn, connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False


@contextmanager
def run_rabbitmq() -> Iterator[RabbitMq]:
    """A ready RabbitMQ of the caller's own; where there is no engine or image, `needs.missing` ends the test."""
    image = _image("TELAR_TEST_RABBITMQ_IMAGE", "telar/rabbitmq:4.0", "rabbitmq:4-management")
    with RabbitMq(image) as broker:
        yield broker


@contextmanager
def run_postgresql() -> Iterator[PostgresContainer]:
    """A ready PostgreSQL server of the caller's own, under the same condition."""
    image = _image("TELAR_TEST_POSTGRES_IMAGE", "telar/postgres:17", "postgres:17")
    with PostgresContainer(image) as server:
        yield server
