"""The embedded suite as a user runs it, or a running one at TELAR_TEST_GATEWAY_URL, and clients of its gateway."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

START_TIMEOUT_S = 60
REVOKED_S = 15.0
"""What was revoked is refused by then: long before tokens or the gateway's memory of keys would run out."""
PASSWORD = "correct horse battery staple"


@dataclass
class RunningSuite:
    """Where a suite is, and its administrator's credentials; `output` is what it printed when it was ready."""

    url: str
    username: str
    password: str
    mongo_uri: str = ""
    lab_url: str = ""
    services: dict[str, str] = field(default_factory=dict)
    data_dir: Path = Path()
    process: subprocess.Popen[bytes] | None = None
    log: Path = Path()

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


@pytest.fixture(scope="session")
def suite() -> Iterator[RunningSuite]:
    given = os.environ.get("TELAR_TEST_GATEWAY_URL")
    if given:
        yield RunningSuite(given, os.environ["TELAR_ADMIN_USERNAME"], os.environ["TELAR_ADMIN_PASSWORD"])
        return
    folder = Path(tempfile.mkdtemp(prefix="telar-e2e-"))
    running = start_suite(folder / "data")
    try:
        yield running
        assert running.stop() == 0
    finally:
        if running.process is not None and running.process.poll() is None:
            running.process.kill()
        shutil.rmtree(folder, ignore_errors=True)


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
