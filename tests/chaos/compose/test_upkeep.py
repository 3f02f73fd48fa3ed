"""What an operator does to the suite in containers: replace it under load, save it, wipe it, bring it back."""

import hashlib
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from tests.corpora.images import disks
from tests.e2e.callers import Caller, Within, asked, caller_of, client_of, uploaded
from tests.e2e.composed import PROJECT, SERVICES, Composed
from tests.e2e.conftest import RunningSuite, composed_suite
from tests.integration.fetcher.pictures import PictureServer

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

CONTENT = disks.raw_disk(1 << 20) + secrets.token_bytes(1 << 20)
PICTURE = "fetcher/shop/products/*/original/*.jpg"
KEPT_BY_BACKUPS = ("gateway", "images", "fetcher", "postgres", "rabbitmq", "mongodb")


@pytest.fixture(scope="module")
def suite() -> Iterator[RunningSuite]:
    with composed_suite(dict.fromkeys(SERVICES, 2)) as running:
        yield running


@pytest.fixture(scope="module")
def client(suite: RunningSuite) -> Iterator[Caller]:
    admin = caller_of(suite, suite.username, suite.password)
    caller = client_of(suite, admin)
    yield caller
    admin.http.close()
    caller.http.close()


@pytest.fixture(scope="module")
def image(client: Caller) -> str:
    """The path of an uploaded image."""
    return uploaded(client, CONTENT)


def test_replicas_are_replaced_while_requests_go_on(containers: Composed, client: Caller, image: str) -> None:
    before = {one["Id"] for one in containers.containers("images")}
    with asked(client, image) as statuses:
        containers.run("deploy/roll.sh", "images", timeout_s=300)
    after = {one["Id"] for one in containers.containers("images")}
    assert len(after) == 2
    assert not before & after
    assert set(statuses) == {200}


def test_a_databases_password_and_the_shared_secret_are_changed(
    suite: RunningSuite, containers: Composed, client: Caller, within: Within
) -> None:
    url = containers.secrets / "telar_vms_database_url"
    password = secrets.token_urlsafe(32)
    psql = ("exec", "-T", "postgres", "psql", "-U", "postgres", "-c")
    containers.compose(*psql, f"ALTER ROLE telar_vms PASSWORD '{password}'")
    url.write_text(f"postgresql://telar_vms:{password}@postgres:5432/telar_vms\n")
    containers.run("deploy/roll.sh", "vms", timeout_s=400)
    assert client.http.get("/api/v1/vms").status_code == 200

    (containers.secrets / "telar_service_secret").write_text(secrets.token_urlsafe(32) + "\n")
    recreate = ("up", "-d", "--force-recreate", "--wait", "gateway", *SERVICES)
    containers.compose(*recreate, timeout_s=500)
    within(lambda: httpx.get(f"{suite.url}/api/v1/health", trust_env=False).status_code == 200, 120)
    assert client.http.get("/api/v1/vms").status_code == 200


def _ended_job(suite: RunningSuite, client: Caller, within: Within) -> dict[str, Any]:
    """A job of the fetcher's that has fetched one picture."""
    pictures = PictureServer(suite.host)
    pictures.start()
    try:
        connection: MongoClient[dict[str, Any]] = MongoClient(suite.mongo_uri)
        with connection:
            connection["shop"]["products"].insert_one({"_id": 1, "image_url": f"{pictures.url}/ok/1.jpg"})
        asked = client.http.post("/api/v1/download/collection/shop/products", json={"search_field": "image_url"})
        assert asked.status_code == 202, asked.text
        path, job = f"/api/v1/jobs/{asked.json()['job_id']}", dict[str, Any]()

        def ended() -> bool:
            job.update(client.http.get(path).json())
            return bool(job["status"] == "completed")

        within(ended, 180)
    finally:
        pictures.stop()
    return job


def test_what_was_saved_is_back_after_everything_was_wiped(
    suite: RunningSuite, containers: Composed, client: Caller, image: str, within: Within
) -> None:
    folder = containers.folder / "backup"
    job = _ended_job(suite, client, within)
    wish = {"name": "kept", "os_type": "debian", "cores": 1, "memory_mib": 512}
    vm = client.done(client.http.post("/api/v1/vms", json=wish), within)["vm"]
    within(lambda: client.usage() == {"image": 1, "vm": 1, "fetch_job": 1}, 60)
    containers.run("deploy/backup.sh", "save", str(folder), timeout_s=300)
    containers.compose("down", "--timeout", "5", timeout_s=180)
    for name in KEPT_BY_BACKUPS:
        containers.remove_volume(name)

    containers.run("deploy/backup.sh", "restore", str(folder), timeout_s=400)
    within(lambda: httpx.get(f"{suite.url}/api/v1/health", trust_env=False).status_code == 200, 60)
    # The same token: its signing key and its session are back, too.
    assert client.http.get("/api/v1/users/me").json()["username"] == client.name
    assert hashlib.sha256(client.http.get(f"{image}/download").content).digest() == hashlib.sha256(CONTENT).digest()
    assert client.http.get(f"/api/v1/jobs/{job['job_id']}").json() == job
    assert list(containers.volume("fetcher").glob(PICTURE))
    within(lambda: client.http.get(f"/api/v1/vms/{vm['id']}").json()["state"] == "running", 60)
    assert client.http.get(f"/api/v1/vms/{vm['id']}").json()["vmid"] == vm["vmid"]
    assert client.usage() == {"image": 1, "vm": 1, "fetch_job": 1}
    assert client.http.delete(image).status_code == 204  # events still reach who must hear of them
    within(lambda: client.usage() == {"vm": 1, "fetch_job": 1}, 60)


def test_backups_are_neither_mixed_nor_taken_when_they_are_damaged(containers: Composed, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        done = subprocess.run(
            [PROJECT / "deploy" / "backup.sh", *arguments],
            env=containers.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        return done.stderr

    assert "is not empty" in refused("save", str(containers.folder / "backup"))
    assert "holds no finished backup" in refused("restore", str(tmp_path))
    (tmp_path / "auth.dump").write_bytes(b"cut")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  auth.dump\n")
    assert "is damaged" in refused("restore", str(tmp_path))


def test_two_gateways_behind_two_ports_know_the_same_sessions(
    containers: Composed, client: Caller, within: Within
) -> None:
    first = int(containers.environment["TELAR_PORT"])
    containers.environment["TELAR_PORT"] = f"{first}-{first + 1}"
    containers.compose("up", "-d", "--wait", "--no-deps", "--scale", "gateway=2", "gateway", timeout_s=400)
    urls = [f"http://127.0.0.1:{port}" for port in (first, first + 1)]
    headers = {"authorization": client.http.headers["authorization"]}

    def statuses() -> list[int]:
        return [httpx.get(f"{url}/api/v1/images", headers=headers, trust_env=False).status_code for url in urls]

    within(lambda: statuses() == [200, 200], 60)
    assert httpx.post(f"{urls[0]}/api/v1/logout", headers=headers, trust_env=False).status_code == 204
    within(lambda: statuses() == [401, 401], 10)
