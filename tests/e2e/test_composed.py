"""One container per service, two replicas of some: healthy, shared fairly, every event counted once."""

import secrets
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.corpora.images import disks

from .callers import Caller, Within, caller_of, client_of
from .composed import Composed
from .conftest import RunningSuite, composed_suite

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

CONTENT = disks.raw_disk(1 << 20) + secrets.token_bytes(1 << 20)


@pytest.fixture(scope="module")
def suite() -> Iterator[RunningSuite]:
    with composed_suite({"images": 2, "vms": 2}) as running:
        yield running


@pytest.fixture(scope="module")
def admin(suite: RunningSuite) -> Iterator[Caller]:
    caller = caller_of(suite, suite.username, suite.password)
    yield caller
    caller.http.close()


@pytest.fixture(scope="module")
def client(suite: RunningSuite, admin: Caller) -> Iterator[Caller]:
    """A user who may have two machines."""
    caller = client_of(suite, admin, vms=2)
    yield caller
    caller.http.close()


@pytest.fixture(scope="module")
def image(client: Caller) -> str:
    """The path of an uploaded image."""
    fields = {"name": "two", "os_type": "Debian"}
    answer = client.http.post("/api/v1/images/upload", data=fields, files={"file": ("a.img", CONTENT)})
    assert answer.status_code == 201, answer.text
    return f"/api/v1/images/{answer.json()['image']['id']}"


def _requests_of(address: str) -> float:
    """How many requests for images a replica has answered."""
    lines = httpx.get(f"http://{address}:8000/metrics", trust_env=False).text.splitlines()
    counts = [line for line in lines if line.startswith("telar_http_requests_total{") and 'route="/api/v1/im' in line]
    return sum(float(line.rpartition(" ")[2]) for line in counts)


def test_all_containers_are_healthy_and_run_without_privileges(suite: RunningSuite, containers: Composed) -> None:
    found = containers.containers()
    by_service = Counter(one["Config"]["Labels"]["com.docker.compose.service"] for one in found)
    assert (by_service["images"], by_service["vms"], by_service["auth"]) == (2, 2, 1)
    for one in found:
        if one["Config"]["Labels"]["com.docker.compose.service"] == "migrate":
            assert one["State"]["ExitCode"] == 0
            continue
        assert one["State"]["Health"]["Status"] == "healthy", one["Name"]
        assert one["HostConfig"]["Privileged"] is False
        if one["Config"]["Image"] == containers.image:
            assert one["Config"]["User"] == "telar", one["Name"]
            assert one["HostConfig"]["CapDrop"] == ["ALL"], one["Name"]
    health = httpx.get(f"{suite.url}/api/v1/health", trust_env=False).json()
    assert {name: report["status"] for name, report in health["services"].items()} == dict.fromkeys(
        ("auth", "images", "vms", "containers", "fetcher"), "ok"
    )


def test_both_replicas_serve_what_either_has_stored(containers: Composed, client: Caller, image: str) -> None:
    before = {address: _requests_of(address) for address in containers.addresses("images")}
    assert len(before) == 2
    for _ in range(8):
        assert client.http.get("/api/v1/images").status_code == 200
        assert client.http.get(f"{image}/download").content == CONTENT
    assert all(_requests_of(address) > count for address, count in before.items())


def test_a_quota_holds_over_two_replicas_and_each_event_counts_once(client: Caller, image: str, within: Within) -> None:
    assert image
    wish = {"name": "one-of-two", "os_type": "debian", "cores": 1, "memory_mib": 512}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.http.post("/api/v1/vms", json=wish), range(8)))
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert Counter(answer.status_code for answer in answers) == {202: 2, 409: 6}
    for answer in accepted:
        client.done(answer, within)
    within(lambda: client.usage() == {"image": 1, "vm": 2}, 30)
    client.done(client.http.delete(f"/api/v1/vms/{accepted[0].json()['vm']['id']}"), within)
    within(lambda: client.usage() == {"image": 1, "vm": 1}, 30)


def test_a_stack_runs_on_the_engine_that_runs_the_suite(client: Caller, within: Within) -> None:
    wish = {"name": "site", "service_types": ["static"], "file_manager": False}
    made = client.http.post("/api/v1/stacks", json=wish)
    stack = client.done(made, within)["stack"]
    path = f"/api/v1/stacks/{stack['id']}"
    try:
        shown = client.http.get(path).json()
        assert shown["state"] == "running"
        assert httpx.get(shown["urls"][0], trust_env=False).status_code == 200
    finally:
        client.done(client.http.delete(path), within)


def test_a_new_signing_key_is_published_while_tokens_in_use_stay_good(
    suite: RunningSuite, containers: Composed, client: Caller, within: Within
) -> None:
    def published() -> set[str]:
        keys = httpx.get(f"{suite.url}/.well-known/jwks.json", trust_env=False).json()["keys"]
        return {key["kid"] for key in keys}

    before = published()
    containers.compose("exec", "-T", "gateway", "telar", "keys", "rotate")
    within(lambda: len(published() - before) == 1, 15)
    assert client.http.get("/api/v1/users/me").status_code == 200
