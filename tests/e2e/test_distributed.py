"""`telar serve`: gateway and auth as processes of their own, on RabbitMQ and PostgreSQL servers."""

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from libs.common.testing import stack

from .conftest import REVOKED_S, RunningSuite, log_in

pytestmark = [pytest.mark.rabbitmq, pytest.mark.docker]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuite]:
    folder = tmp_path_factory.mktemp("distributed")
    ports = {"gateway": free_port(), "auth": free_port()}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    password = secrets.token_urlsafe(16)
    with stack.run_rabbitmq() as broker, stack.run_postgresql() as postgres:
        environment = {
            **os.environ,
            "TELAR_SERVICE_SECRET": secrets.token_urlsafe(32),
            "TELAR_BUS_URL": broker.amqp_url,
            "TELAR_GATEWAY_URL": urls["gateway"],
            "TELAR_AUTH_URL": urls["auth"],
            "TELAR_GATEWAY_AUTH_URLS": urls["auth"],
            "TELAR_AUTH_DATABASE_URL": postgres.dsn,
            "TELAR_ADMIN_PASSWORD": password,
            "TELAR_DATA_DIR": str(folder),
            "TELAR_LOG_FORMAT": "json",
        }
        telar = [sys.executable, "-m", "cli.main"]
        subprocess.run([*telar, "migrate", "auth"], env=environment, check=True, capture_output=True)
        running = []
        for name, port in ports.items():
            with (folder / f"{name}.log").open("wb") as log:
                command = [*telar, "serve", name, "--host", "127.0.0.1", "--port", str(port)]
                running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        try:
            yield RunningSuite(urls["gateway"], "admin", password, services={"auth": urls["auth"]}, data_dir=folder)
        finally:
            for process in running:
                process.terminate()
            codes = [process.wait(timeout=20) for process in running]
        assert codes == [0, 0]


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


def test_a_default_secret_stops_the_start(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TELAR_")}
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "serve", "auth"],
        env={**environment, "PYTHONPATH": str(Path.cwd())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "TELAR_SERVICE_SECRET" in done.stderr
