"""The suite distributed: RabbitMQ and PostgreSQL in containers, most services in two processes of their own."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psycopg
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.engine import make_url

from libs.common.testing import stack
from libs.common.testing.stack import PostgresContainer, RabbitMq
from tests.integration.fetcher.mongo_servers import nx_27017

REPLICAS = {"auth": 2, "images": 2, "vms": 2, "containers": 2, "fetcher": 1}
SQL = ("auth", "images", "vms", "containers")
POOL_SIZE = 6
START_S = 120
_TELAR = (sys.executable, "-m", "cli.main")
_ports = count(18_000 + os.getpid() % 1_000)


def free_port() -> int:
    """A port below the range of outgoing connections, which stays free while its process is down."""
    for port in _ports:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError


class Member:
    """One process of `telar serve`, always on the same port."""

    def __init__(self, service: str, number: int, environment: Mapping[str, str], folder: Path) -> None:
        self.service = service
        self.name = f"{service}-{number}"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{self.name}.log"
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_TELAR, "serve", self.service, "--host", "127.0.0.1", "--port", str(self.port)],
                env=dict(self._environment),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def ended(self, timeout_s: float) -> int:
        """Its exit code, when it has ended; raises subprocess.TimeoutExpired."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def stop(self) -> None:
        if self.has_ended():
            return
        self.terminate()
        try:
            self.ended(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def metrics(self) -> dict[str, float]:
        """What /metrics shows: each sample by its name alone, summed over its labels."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics", trust_env=False).text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found


@dataclass
class Cluster:
    """A suite with replicas, and what can be done to it."""

    broker: RabbitMq
    postgres: PostgresContainer
    members: list[Member]
    databases: dict[str, str]
    password: str
    folder: Path
    lab_url: str
    said_early: set[str] = field(default_factory=set)
    """Events that auth said while services started, maybe before their queues stood: they read accounts, too."""
    _tokens: list[str] = field(default_factory=list)

    @property
    def gateway(self) -> Member:
        return self.members[0]

    def of(self, service: str) -> list[Member]:
        return [member for member in self.members if member.service == service]

    def start(self) -> None:
        for member in self.members:
            member.start()
        self.wait_ready()
        self.said_early = set(self.said("auth"))

    def wait_ready(self, timeout_s: float = START_S) -> float:
        """Wait until every process is ready; gives the seconds it took."""
        began = time.monotonic()
        waiting = list(self.members)
        while waiting:
            waiting = [member for member in waiting if not member.is_ready()]
            if any(member.has_ended() for member in waiting) or (waiting and time.monotonic() - began > timeout_s):
                told = "\n".join(f"{member.name}: {member.log.read_text()[-1500:]}" for member in waiting)
                raise TimeoutError(f"not ready after {time.monotonic() - began:.0f} s:\n{told}")
            time.sleep(0.05 if waiting else 0)
        return time.monotonic() - began

    def token(self) -> str:
        """An access token of the administrator's, good for an hour."""
        if not self._tokens:
            body = {"username": "admin", "password": self.password}
            answer = httpx.post(f"{self.gateway.url}/api/v1/login", json=body, trust_env=False, timeout=30)
            assert answer.status_code == 200, answer.text
            self._tokens.append(answer.json()["access_token"])
        return self._tokens[0]

    def client(self, **options: Any) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.token()}", **options.pop("headers", {})}
        given: dict[str, Any] = {"timeout": 30, "trust_env": False, "limits": httpx.Limits(max_connections=500)}
        return httpx.AsyncClient(base_url=self.gateway.url, headers=headers, **(given | options))

    def rows(self, service: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a service's database answers, or nothing when the query only changes rows."""
        with psycopg.connect(self.databases[service]) as connection:
            cursor = connection.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description is not None else []

    def said(self, service: str) -> dict[str, dict[str, Any]]:
        """The events that a service has written, by their ids."""
        events = [json.loads(bytes(body)) for (body,) in self.rows(service, "SELECT body FROM outbox ORDER BY id")]
        return {event["id"]: event for event in events}

    def handled(self, service: str) -> set[str]:
        return {event_id for (event_id,) in self.rows(service, "SELECT event_id FROM inbox")}

    def waiting(self) -> int:
        """Events that no broker has confirmed yet."""
        query = "SELECT count(*) FROM outbox WHERE published_at IS NULL"
        return sum(self.rows(service, query)[0][0] for service in SQL)

    def unhandled(self) -> set[tuple[str, str]]:
        """Events that a service should handle and has not: its name, and the event's id."""
        said = self.said("auth")
        users = {name for name, event in said.items() if event["type"].startswith(("auth.user.", "auth.quota."))}
        machines = {name for name, event in self.said("vms").items() if event["type"].startswith("vms.vm.")}
        left = {("auth", name) for name in machines - self.handled("auth")}
        for service in SQL:
            if service != "auth":
                known = dict(self.rows(service, "SELECT owner_id, sequence FROM quota_accounts"))
                read = {
                    name for name in self.said_early & users if known.get(said[name]["subject"], -1) >= _at(said[name])
                }
                left |= {(service, name) for name in users - self.handled(service) - read}
        return left


def _at(event: dict[str, Any]) -> int:
    """Its subject's version."""
    return int(event["sequence"])


def _database(server: PostgresContainer, name: str) -> str:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE telar_{name}".encode())
    return make_url(server.dsn).set(database=f"telar_{name}").render_as_string(hide_password=False)


@contextmanager
def _lab(folder: Path) -> Iterator[dict[str, str]]:
    """The Proxmox lab in a process of its own; gives what opens it."""
    port = free_port()
    process = subprocess.Popen(
        [*_TELAR, "pvesim", "--port", str(port), "--data-dir", str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        said = dict(process.stdout.readline().split(":", 1) for _ in range(3))
        token_id, _, secret = said["Token"].strip().rpartition("=")
        yield {
            "name": "lab",
            "url": said["Lab"].strip(),
            "fingerprint": said["Fingerprint"].strip(),
            "token_id": token_id,
            "token_secret": secret,
        }
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@contextmanager
def running_cluster(folder: Path, **settings: str) -> Iterator[Cluster]:
    """A cluster that is ready; everything it started ends with the block."""
    with ExitStack() as stack_:
        broker = stack_.enter_context(stack.run_rabbitmq())
        postgres = stack_.enter_context(stack.run_postgresql())
        lab = stack_.enter_context(_lab(folder / "lab"))
        mongo_uri = stack_.enter_context(nx_27017(folder / "mongo"))
        databases = {service: _database(postgres, service) for service in SQL}
        environment: dict[str, str] = {
            **os.environ,
            "TELAR_SERVICE_SECRET": secrets.token_urlsafe(32),
            "TELAR_ADMIN_PASSWORD": secrets.token_urlsafe(16),
            "TELAR_BUS_URL": broker.amqp_url,
            "TELAR_DATA_DIR": str(folder),
            "TELAR_LOG_FORMAT": "json",
            "TELAR_DATABASE_POOL_SIZE": str(POOL_SIZE),
            "TELAR_GATEWAY_RATE_PER_SECOND": "100000",
            "TELAR_GATEWAY_RATE_BURST": "100000",
            "TELAR_GATEWAY_TOKEN_SECONDS": "3600",
            "TELAR_OUTBOUND_ALLOW_NETWORKS": "127.0.0.0/8",
            "TELAR_CONTAINERS_STACKS_DIR": str(folder / "stacks"),
            "TELAR_VMS_CLUSTERS": json.dumps([lab]),
            "TELAR_FETCHER_MONGO_URI": mongo_uri,
            "TELAR_FETCHER_SOURCE_URI": mongo_uri,
            **{f"TELAR_{service.upper()}_DATABASE_URL": url for service, url in databases.items()},
            **settings,
        }
        members = [Member("gateway", 1, environment, folder)]
        for service, replicas in REPLICAS.items():
            members += [Member(service, number, environment, folder) for number in range(1, replicas + 1)]
        cluster = Cluster(broker, postgres, members, databases, environment["TELAR_ADMIN_PASSWORD"], folder, lab["url"])
        environment["TELAR_GATEWAY_URL"] = cluster.gateway.url
        environment["TELAR_AUTH_URL"] = cluster.of("auth")[0].url
        environment["TELAR_VMS_IMAGES_URL"] = cluster.of("images")[0].url
        for service in REPLICAS:
            urls = " ".join(member.url for member in cluster.of(service))
            environment[f"TELAR_GATEWAY_{service.upper()}_URLS"] = urls
        subprocess.run([*_TELAR, "migrate"], env=environment, check=True, capture_output=True)
        for member in members:
            stack_.callback(member.stop)
        cluster.start()
        yield cluster
