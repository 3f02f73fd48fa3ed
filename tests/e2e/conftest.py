"""The embedded suite as a user runs it, and clients of its gateway; by setting, the suite in containers instead.

`TELAR_TEST_COMPOSE=2` runs the same tests on docker-compose.yml with two replicas of every service.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from .composed import SERVICES, Composed, composed

START_TIMEOUT_S = 60
REVOKED_S = 15.0
"""What was revoked is refused by then: long before tokens or the gateway's memory of keys would run out."""
PASSWORD = "correct horse battery staple"


@dataclass
class RunningSuite:
    """Where a suite is, and its administrator's credentials.

    `services` are the URLs of its services, each one's first replica, and `host` is what it calls this machine.
    """

    url: str
    username: str
    password: str
    mongo_uri: str = ""
    lab_url: str = ""
    services: dict[str, str] = field(default_factory=dict)
    data_dir: Path = Path()
    process: subprocess.Popen[bytes] | None = None
    log: Path = Path()
    host: str = "127.0.0.1"
    containers: Composed | None = None

    def logged(self) -> str:
        """What its processes have printed, as far as that is known here."""
        if self.containers is not None:
            return self.containers.logs()
        return self.log.read_text() if self.log.is_file() else ""

    def stop(self) -> int:
        """Ask it to end as Ctrl-C does; gives the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


def start_suite(data_dir: Path, **environment: str) -> RunningSuite:
    """Run `telar up` in a folder and wait until it says that it is ready."""
    password = environment.setdefault("TELAR_ADMIN_PASSWORD", secrets.token_urlsafe(16))
    settings = {
        "TELAR_DATA_DIR": str(data_dir),
        "TELAR_PORT": "0",
        "TELAR_GATEWAY_RATE_PER_SECOND": "10000",
        "TELAR_GATEWAY_RATE_BURST": "10000",
        "TELAR_GATEWAY_TOKEN_SECONDS": "3600",  # one login of the administrator serves all tests
        "TELAR_OUTBOUND_ALLOW_NETWORKS": "127.0.0.0/8",
        "TELAR_LAB_TIME_SCALE": "0.1",
        **environment,
    }
    log = data_dir.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "up"],
            env={**os.environ, **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while "Ready." not in (text := log.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the suite did not start:\n{text[-4000:]}")
        time.sleep(0.05)

    def said(name: str) -> str:
        found = re.search(rf"^{name}:\s+(\S+)$", text, re.MULTILINE)
        return found[1] if found else ""

    return RunningSuite(
        url=said("Gateway"),
        username="admin",
        password=password,
        mongo_uri=said("MongoDB"),
        lab_url=said("Lab"),
        services=dict(re.findall(r"^Service: (\w+) (\S+)$", text, re.MULTILINE)),
        data_dir=data_dir,
        process=process,
        log=log,
    )


@contextmanager
def embedded_suite(**environment: str) -> Iterator[RunningSuite]:
    """A suite in one process, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="telar-e2e-"))
    running = start_suite(folder / "data", **environment)
    try:
        yield running
        assert running.stop() == 0
    finally:
        if running.process is not None and running.process.poll() is None:
            running.process.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def composed_suite(replicas: dict[str, int], **settings: str) -> Iterator[RunningSuite]:
    """A suite in containers, with so many replicas of the services that are named."""
    with composed(replicas, **settings) as containers:
        yield RunningSuite(
            url=containers.url,
            username="admin",
            password=containers.password,
            mongo_uri=f"mongodb://{containers.addresses('mongodb')[0]}:27017",
            lab_url=f"https://{containers.addresses('pvesim')[0]}:8006",
            services={name: f"http://{containers.addresses(name)[0]}:8000" for name in SERVICES},
            data_dir=containers.data_dir(),
            host=containers.host,
            containers=containers,
        )


MakeSuite = Callable[..., AbstractContextManager[RunningSuite]]


@pytest.fixture(scope="session")
def make_suite() -> MakeSuite:
    """Starts suites of the form under test; what they are given are settings."""
    count = os.environ.get("TELAR_TEST_COMPOSE")
    if not count:
        return embedded_suite
    return lambda **settings: composed_suite(dict.fromkeys(SERVICES, int(count)), **settings)


@pytest.fixture(scope="session")
def suite(make_suite: MakeSuite) -> Iterator[RunningSuite]:
    with make_suite() as running:
        yield running


def log_in(url: str, username: str, password: str) -> dict[str, Any]:
    answer = httpx.post(f"{url}/api/v1/login", json={"username": username, "password": password})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


@dataclass
class Account:
    """A user and an HTTP client that speaks for it."""

    user: dict[str, Any]
    password: str
    http: httpx.Client
    session: dict[str, Any]


@pytest.fixture(scope="module")
def containers(suite: RunningSuite) -> Composed:
    assert suite.containers is not None
    return suite.containers


@pytest.fixture(scope="session")
def admin(suite: RunningSuite) -> Iterator[Account]:
    session = log_in(suite.url, suite.username, suite.password)
    with _client(suite.url, session["access_token"]) as http:
        yield Account(session["user"], suite.password, http, session)


@pytest.fixture
def make_client(suite: RunningSuite, admin: Account) -> Iterator[Callable[[], Account]]:
    """Makes CLIENT users and logs them in."""
    made: list[httpx.Client] = []

    def make() -> Account:
        name = f"client-{secrets.token_hex(4)}"
        body = {"email": f"{name}@example.org", "username": name, "password": PASSWORD}
        answer = admin.http.post("/api/v1/users/", json=body)
        assert answer.status_code == 201, answer.text
        session = log_in(suite.url, name, PASSWORD)
        http = _client(suite.url, session["access_token"])
        made.append(http)
        return Account(answer.json(), PASSWORD, http, session)

    yield make
    for http in made:
        http.close()


@pytest.fixture
def client(make_client: Callable[[], Account]) -> Account:
    return make_client()


def _client(url: str, token: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=30, trust_env=False)


@pytest.fixture(scope="session")
def within() -> Callable[..., float]:
    """Waits until a condition holds, at most so many seconds; gives how long it took."""

    def wait(condition: Callable[[], Any], deadline_s: float) -> float:
        started, pause_s = time.monotonic(), 0.02
        while not condition():
            if time.monotonic() - started > deadline_s:
                pytest.fail(f"It did not come true within {deadline_s} s")
            time.sleep(pause_s)
            pause_s = min(0.2, pause_s * 1.2)
        return time.monotonic() - started

    return wait
