"""`telar serve`: gateway and auth as processes of their own, on RabbitMQ and PostgreSQL servers."""

import os
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from libs.common.testing import stack
from libs.common.testing.ports import free_port

from .conftest import REVOKED_S, RunningSuite, log_in

TELAR = [sys.executable, "-m", "cli.main"]
pytestmark = [pytest.mark.rabbitmq, pytest.mark.docker]


@contextmanager
def serving(folder: Path, environment: dict[str, str], ports: dict[str, int]) -> Iterator[None]:
    """Processes of `telar serve`, each by its name (`gateway` or `gateway-2`) and port, which end well."""
    running = []
    for name, port in ports.items():
        with (folder / f"{name}.log").open("wb") as log:
            command = [*TELAR, "serve", name.partition("-")[0], "--host", "127.0.0.1", "--port", str(port)]
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        codes = [process.wait(timeout=20) for process in running]
    assert codes == [0] * len(ports)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Settings for gateway and auth on servers that run."""
    ports = {"gateway": free_port(), "auth": free_port()}
    with stack.run_rabbitmq() as broker, stack.run_postgresql() as postgres:
        yield {
            **os.environ,
            "TELAR_SERVICE_SECRET": secrets.token_urlsafe(32),
            "TELAR_BUS_URL": broker.amqp_url,
            "TELAR_GATEWAY_URL": f"http://127.0.0.1:{ports['gateway']}",
            "TELAR_AUTH_URL": f"http://127.0.0.1:{ports['auth']}",
            "TELAR_GATEWAY_AUTH_URLS": f"http://127.0.0.1:{ports['auth']}",
            "TELAR_AUTH_DATABASE_URL": postgres.dsn,
            "TELAR_ADMIN_PASSWORD": secrets.token_urlsafe(16),
            "TELAR_DATA_DIR": str(tmp_path_factory.mktemp("distributed")),
            "TELAR_LOG_FORMAT": "json",
        }


@pytest.fixture(scope="module")
def distributed(environment: dict[str, str]) -> Iterator[RunningSuite]:
    folder = Path(environment["TELAR_DATA_DIR"])
    gateway, auth = environment["TELAR_GATEWAY_URL"], environment["TELAR_AUTH_URL"]
    subprocess.run([*TELAR, "migrate", "auth"], env=environment, check=True, capture_output=True)
    ports = {"gateway": int(gateway.rpartition(":")[2]), "auth": int(auth.rpartition(":")[2])}
    with serving(folder, environment, ports):
        password = environment["TELAR_ADMIN_PASSWORD"]
        yield RunningSuite(gateway, "admin", password, services={"auth": auth}, data_dir=folder)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_a_key_deleted_in_one_process_is_refused_by_the_others_by_event(
    distributed: RunningSuite, within: Callable[..., float]
) -> None:
    within(lambda: _answers(f"{distributed.url}/readyz"), 30)
    within(lambda: _answers(f"{distributed.url}/api/v1/health"), 30)
    session = log_in(distributed.url, distributed.username, distributed.password)
    bearer = {"authorization": f"Bearer {session['access_token']}"}
    with httpx.Client(base_url=distributed.url, headers=bearer) as admin:
        made = admin.post("/api/v1/api-keys", json={"name": "far"}).json()
        key = {"x-api-key": made["key"]}
        assert httpx.get(f"{distributed.url}/protected", headers=key).status_code == 200
        assert admin.delete(f"/api/v1/api-keys/{made['id']}").status_code == 204
        within(lambda: httpx.get(f"{distributed.url}/protected", headers=key).status_code == 401, REVOKED_S)


def test_a_service_that_is_not_there_answers_503_and_the_rest_goes_on(distributed: RunningSuite) -> None:
    session = log_in(distributed.url, distributed.username, distributed.password)
    bearer = {"authorization": f"Bearer {session['access_token']}"}
    absent = httpx.get(f"{distributed.url}/api/v1/images", headers=bearer)
    assert absent.status_code == 503
    assert absent.json()["type"] == "/problems/service-absent"
    assert httpx.get(f"{distributed.url}/api/v1/users/me", headers=bearer).status_code == 200


def test_logs_of_all_processes_reach_the_gateways_stream(distributed: RunningSuite) -> None:
    session = log_in(distributed.url, distributed.username, distributed.password)
    bearer = {"authorization": f"Bearer {session['access_token']}"}
    with httpx.stream("GET", f"{distributed.url}/logs/stream", headers=bearer, params={"service": "auth"}) as stream:
        httpx.get(f"{distributed.url}/api/v1/users/me", headers=bearer | {"x-request-id": "acrossprocesses"})
        assert next(line for line in stream.iter_lines() if "acrossprocesses" in line)


def test_what_a_caller_spends_at_one_gateway_is_spent_at_the_other(
    distributed: RunningSuite, environment: dict[str, str], within: Callable[..., float]
) -> None:
    burst = 200
    strict = {"TELAR_GATEWAY_RATE_BURST": str(burst), "TELAR_GATEWAY_RATE_PER_SECOND": "0.01"}
    ports = {"gateway-2": free_port(), "gateway-3": free_port()}
    with serving(distributed.data_dir, environment | strict, ports):
        first, second = (f"http://127.0.0.1:{port}" for port in ports.values())
        within(lambda: _answers(f"{first}/readyz") and _answers(f"{second}/readyz"), 30)
        session = log_in(distributed.url, distributed.username, distributed.password)
        with httpx.Client(headers={"authorization": f"Bearer {session['access_token']}"}) as caller:
            spent = [caller.get(f"{first}/api/v1/users/me").status_code for _ in range(burst + 1)]
            assert Counter(spent) == {200: burst, 429: 1}
            asked: list[int] = []

            def refused() -> bool:
                asked.append(caller.get(f"{second}/api/v1/users/me").status_code)
                return asked[-1] == 429

            within(refused, 30)
        assert len(asked) <= burst // 2  # by itself it would have answered so many as the first


def test_a_default_secret_stops_the_start(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TELAR_")}
    done = subprocess.run(
        [*TELAR, "serve", "auth"],
        env={**environment, "PYTHONPATH": str(Path.cwd())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "TELAR_SERVICE_SECRET" in done.stderr
