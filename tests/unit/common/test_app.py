"""What every service's app does around its routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Form
from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import OperationalError

from libs.common.app import create_app
from libs.common.auth import AdminOnly, CurrentUser, ServiceOnly, requires_scope
from libs.common.errors import Throttled
from libs.common.health import Health
from libs.common.settings import CommonSettings
from libs.common.telemetry import Metrics
from libs.common.testing.identity import TestIssuer


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    count: int


@asynccontextmanager
async def nothing(_app: FastAPI) -> AsyncIterator[None]:
    yield


def routes() -> APIRouter:
    router = APIRouter(dependencies=[requires_scope("things")])

    @router.post("/things")
    async def make(thing: Thing, _caller: CurrentUser) -> Thing:
        return thing

    @router.post("/forms")
    async def form(name: Annotated[str, Form()]) -> str:
        return name

    @router.get("/things/{number}")
    async def get(number: int) -> int:
        return number

    @router.get("/admin")
    async def admin(caller: AdminOnly) -> str:
        return caller.username

    @router.get("/service")
    async def service(caller: ServiceOnly) -> str:
        return caller.username

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError("password=hunter2 at /etc/shadow")

    @router.get("/no-database")
    async def no_database() -> None:
        raise OperationalError("SELECT secret", {}, Exception("connection to 10.0.0.9 refused"))

    @router.get("/full")
    async def full() -> None:
        raise OSError(28, "No space left on device")

    @router.get("/slow-down")
    async def slow_down() -> None:
        raise Throttled("later", retry_after_s=7.2)

    return router


@pytest.fixture
def issuer() -> TestIssuer:
    return TestIssuer()


@pytest.fixture
def checks() -> Health:
    return Health()


@pytest.fixture
async def client(issuer: TestIssuer, checks: Health) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(
        service="things",
        title="Things",
        description="",
        settings=CommonSettings(_env_file=None, embedded=True, max_body_bytes=1000),
        metrics=Metrics("things"),
        checks=checks,
        verifier=issuer.verifier(),
        idempotency=None,
        routers=[routes()],
        lifespan=nothing,
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://things") as made:
        yield made


def expect_problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    problem: dict[str, Any] = answer.json()
    assert problem["type"] == f"/problems/{slug}"
    assert problem["status"] == status
    assert problem["instance"] == answer.request.url.path
    assert len(problem["trace_id"]) == 32
    return problem


async def test_wrong_fields_are_named_by_pointer(client: httpx.AsyncClient, issuer: TestIssuer) -> None:
    body = {"name": 3, "count": "many", "owner_id": "me"}
    answer = await client.post("/things", json=body, headers=issuer.headers("ada"))
    problem = expect_problem(answer, 422, "invalid")
    assert {error["pointer"] for error in problem["errors"]} == {"/body/name", "/body/count", "/body/owner_id"}


async def test_malformed_json_is_a_400(client: httpx.AsyncClient, issuer: TestIssuer) -> None:
    headers = issuer.headers("ada") | {"content-type": "application/json"}
    expect_problem(await client.post("/things", content=b'{"name": ', headers=headers), 400, "malformed-request")


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_oversized_body_is_refused_however_it_comes(
    client: httpx.AsyncClient, issuer: TestIssuer, *, chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    content: Any = pieces() if chunked else b" " * 1001
    expect_problem(await client.post("/things", content=content, headers=issuer.headers("ada")), 413, "too-large")


async def test_an_unknown_path_and_a_wrong_method_are_problems_too(client: httpx.AsyncClient) -> None:
    nowhere = expect_problem(await client.get("/nowhere"), 404, "not-found")
    assert nowhere["detail"] == "No route leads here; /docs lists all there are"
    answer = await client.delete("/broken")
    assert expect_problem(answer, 405, "method-not-allowed")["detail"] == "This route takes GET"
    assert answer.headers["allow"] == "GET"


async def test_a_surprise_says_nothing_of_its_cause(client: httpx.AsyncClient) -> None:
    problem = expect_problem(await client.get("/broken"), 500, "internal")
    assert "hunter2" not in str(problem)


async def test_a_dead_database_is_a_503_to_come_back_to(client: httpx.AsyncClient) -> None:
    answer = await client.get("/no-database")
    problem = expect_problem(answer, 503, "database-unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert "10.0.0.9" not in str(problem)


async def test_a_full_disk_is_a_507(client: httpx.AsyncClient) -> None:
    expect_problem(await client.get("/full"), 507, "storage-full")


async def test_a_throttled_caller_learns_when_to_come_back(client: httpx.AsyncClient) -> None:
    answer = await client.get("/slow-down")
    expect_problem(answer, 429, "too-many-requests")
    assert answer.headers["retry-after"] == "7"


async def test_every_problem_type_has_its_page(client: httpx.AsyncClient) -> None:
    assert (await client.get("/problems/too-large")).status_code == 200
    expect_problem(await client.get("/problems/no-such-thing"), 404, "not-found")


async def test_who_may_call_is_decided_by_the_token_alone(client: httpx.AsyncClient, issuer: TestIssuer) -> None:
    expect_problem(await client.get("/admin"), 401, "unauthenticated")
    expect_problem(await client.get("/admin", headers=issuer.headers("ada")), 403, "forbidden")
    expect_problem(await client.get("/service", headers=issuer.headers("ada", role="ADMIN")), 403, "forbidden")
    expect_problem(await client.get("/admin", headers=issuer.headers("s", role="SERVICE")), 403, "forbidden")
    assert (await client.get("/admin", headers=issuer.headers("root", role="ADMIN"))).status_code == 200
    assert (await client.get("/service", headers=issuer.headers("s", role="SERVICE"))).status_code == 200
    narrow = issuer.headers("root", role="ADMIN", scopes=("things",))
    expect_problem(await client.get("/admin", headers=narrow), 403, "forbidden")


async def test_a_key_needs_the_scope_of_the_area(client: httpx.AsyncClient, issuer: TestIssuer) -> None:
    reader = issuer.headers("ada", scopes=("things:read",))
    assert (await client.get("/things/3", headers=reader)).status_code == 200
    expect_problem(await client.post("/things", json={"name": "a", "count": 1}, headers=reader), 403, "forbidden")
    expect_problem(await client.get("/things/3", headers=issuer.headers("ada", scopes=("vms",))), 403, "forbidden")


@pytest.mark.parametrize(
    "value", ["Basic YWRhOng=", "Bearer", "Bearer ", "Bearer not.a.token", "bearer\tx", "Token abc"]
)
async def test_credentials_that_are_none_are_refused_and_not_ignored(client: httpx.AsyncClient, value: str) -> None:
    expect_problem(await client.get("/admin", headers={"authorization": value}), 401, "unauthenticated")


async def test_a_request_id_is_kept_if_it_is_harmless(client: httpx.AsyncClient) -> None:
    kept = await client.get("/livez", headers={"x-request-id": "abc-123"})
    assert kept.headers["x-request-id"] == "abc-123"
    made = await client.get("/livez", headers={"x-request-id": "bad id <script>"})
    assert made.headers["x-request-id"] != "bad id <script>"


async def test_liveness_asks_nobody_and_readiness_names_what_fails(client: httpx.AsyncClient, checks: Health) -> None:
    async def well() -> None:
        return

    async def ill() -> None:
        raise Throttled

    checks.add("database", well)
    assert (await client.get("/readyz")).json() == {"status": "ok", "checks": {"database": "ok"}}
    checks.add("bus", ill)
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"database": "ok", "bus": "too-many-requests"}
    assert (await client.get("/livez")).status_code == 200


async def test_a_draining_process_is_not_ready_but_serves(client: httpx.AsyncClient, checks: Health) -> None:
    checks.draining = True
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/things/3")).status_code == 200


async def test_requests_are_counted_by_route_not_by_path(client: httpx.AsyncClient) -> None:
    for number in range(3):
        await client.get(f"/things/{number}")
    page = (await client.get("/metrics")).text
    assert 'telar_http_requests_total{method="GET",route="/things/{number}",service="things",status="200"} 3.0' in page


@pytest.mark.parametrize(
    ("forwarded", "status"), [("127.0.0.1", 200), ("203.0.113.5", 404), ("127.0.0.1, 203.0.113.5", 404), ("x", 404)]
)
async def test_metrics_are_not_for_whom_a_proxy_on_this_host_speaks(
    client: httpx.AsyncClient, forwarded: str, status: int
) -> None:
    assert (await client.get("/metrics", headers={"x-forwarded-for": forwarded})).status_code == status


async def test_metrics_are_for_configured_networks(client: httpx.AsyncClient) -> None:
    transport = client._transport
    assert isinstance(transport, httpx.ASGITransport)
    transport.client = ("198.51.100.7", 1)
    assert (await client.get("/metrics")).status_code == 404
