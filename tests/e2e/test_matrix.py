"""Who may call what, as `route_table` says, checked at the gateway and at each service itself.

A route that has no row fails the first test.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from cli.services import installed
from libs.common.bus import LocalBus
from libs.common.settings import CommonSettings

from .conftest import Account, RunningSuite
from .route_table import HIDDEN, MATRIX, READ_BY_SERVICES, Who, row_of

_ENDS_THE_SESSION = frozenset({"POST /api/v1/logout"})


def _documented(base: str) -> dict[str, str]:
    """Rows of a server's OpenAPI document, and the path of each."""
    document = httpx.get(f"{base}/openapi.json").raise_for_status().json()
    return {row_of(method, path): path for path, item in document["paths"].items() for method in item}


@pytest.fixture(scope="module")
def routes(suite: RunningSuite) -> dict[str, str]:
    """Every documented route of the running suite, of which those without a row are missing."""
    found = _documented(suite.url)
    for url in suite.services.values():
        found |= _documented(url)
    return {row: path for row, path in found.items() if row in MATRIX}


def test_every_route_of_the_running_suite_has_a_row(suite: RunningSuite) -> None:
    found = set(_documented(suite.url))
    for url in suite.services.values():
        found |= set(_documented(url))
    unknown = sorted(found - set(MATRIX))
    assert not unknown, f"say in tests/e2e/route_table.py who may call: {', '.join(unknown)}"


def test_every_route_that_no_document_shows_has_a_row(tmp_path: Path) -> None:
    common = CommonSettings(embedded=True, data_dir=tmp_path)
    unknown = []
    for entry in installed():
        app = entry.create_app(entry.settings(common=common), bus=LocalBus())
        for route in iter_route_contexts(app.routes):
            methods = getattr(route.original_route, "methods", None)
            if methods is None and not hasattr(route.original_route, "endpoint"):
                continue  # the mount of the documentation's assets
            for method in methods or {"WEBSOCKET"}:
                row = row_of(method, str(route.path))
                if row not in MATRIX and row not in HIDDEN:
                    unknown.append(f"{entry.name}: {row}")
    assert not unknown, f"say in tests/e2e/route_table.py who may call: {', '.join(sorted(unknown))}"


def _url(path: str) -> str:
    """A path whose parameters have the form of an id, of nothing that there is."""
    some = f"op_vms_{uuid4().hex}" if path.startswith("/api/v1/operations/") else str(uuid4())
    return re.sub(r"{[^}]*}", some, path)


def _status(http: httpx.Client, row: str, url: str) -> int:
    """Send what a route answers quickly to, and read no stream."""
    method = row.partition(" ")[0]
    body: dict[str, Any] = {"json": {}} if method in ("POST", "PUT", "PATCH") else {}
    with http.stream(method, url, **body) as answer:
        return answer.status_code


def _wrong(
    http: httpx.Client, rows: dict[str, str], allowed: Callable[[int], bool], base: str = ""
) -> list[tuple[str, int]]:
    found = [(row, _status(http, row, base + _url(path))) for row, path in rows.items()]
    return [(row, status) for row, status in found if not allowed(status)]


def _rows(routes: dict[str, str], *who: Who) -> dict[str, str]:
    return {row: path for row, path in routes.items() if MATRIX[row][0] in who}


def _refused(status: int) -> bool:
    return status in (401, 403)


def _let_in(status: int) -> bool:
    return status not in (401, 403) and status != 500


@pytest.fixture
def anonymous(suite: RunningSuite) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=suite.url, trust_env=False, timeout=30) as http:
        yield http


def test_who_does_not_log_in_is_told_so(anonymous: httpx.Client, routes: dict[str, str]) -> None:
    rows = _rows(routes, Who.USER, Who.ADMIN)
    assert len(rows) > 20
    assert _wrong(anonymous, rows, lambda status: status == 401) == []


@pytest.mark.parametrize(
    "credentials",
    [
        {"authorization": "Bearer nonsense"},
        {"authorization": "Basic YWRtaW46YWRtaW4="},
        {"x-api-key": "tlr_AAAAAAAA_" + "A" * 49},
        {"x-user-id": "admin", "x-role": "ADMIN", "remote-user": "admin"},
    ],
    ids=",".join,
)
def test_bad_credentials_are_no_better_than_none(
    anonymous: httpx.Client, routes: dict[str, str], credentials: dict[str, str]
) -> None:
    anonymous.headers.update(credentials)
    assert _wrong(anonymous, _rows(routes, Who.USER, Who.ADMIN), lambda status: status == 401) == []


def test_what_is_open_needs_no_login(anonymous: httpx.Client, routes: dict[str, str]) -> None:
    assert _wrong(anonymous, _rows(routes, Who.ANYONE), _let_in) == []


def test_no_service_lets_anyone_in_who_comes_past_the_gateway(suite: RunningSuite, anonymous: httpx.Client) -> None:
    for name, base in suite.services.items():
        documented = {row: path for row, path in _documented(base).items() if row in MATRIX}
        rows = _rows(documented, Who.USER, Who.ADMIN)
        assert rows, name
        assert _wrong(anonymous, rows, lambda status: status == 401, base) == [], name


def test_a_client_may_do_what_users_may_and_nothing_of_an_administrator(
    make_client: Callable[[], Account], routes: dict[str, str]
) -> None:
    client = make_client()
    assert _wrong(client.http, _rows(routes, Who.ADMIN), lambda status: status == 403) == []
    users = {row: path for row, path in _rows(routes, Who.USER).items() if row not in _ENDS_THE_SESSION}
    assert _wrong(client.http, users, _let_in) == []


def test_an_administrator_may_do_it_all(admin: Account, routes: dict[str, str]) -> None:
    rows = {row: path for row, path in _rows(routes, Who.USER, Who.ADMIN).items() if row not in _ENDS_THE_SESSION}
    assert _wrong(admin.http, rows, _let_in) == []


@pytest.mark.parametrize("area", ["account", "images", "vms", "stacks", "fetch"])
def test_a_key_reaches_its_own_area_and_reads_where_it_may_only_read(
    suite: RunningSuite, make_client: Callable[[], Account], routes: dict[str, str], area: str
) -> None:
    rows = {row: path for row, path in _rows(routes, Who.USER).items() if MATRIX[row][1]}
    own = {row: path for row, path in rows.items() if MATRIX[row][1] == area}
    assert own
    reads = {row: path for row, path in own.items() if row.startswith(("GET ", "HEAD "))}
    client = make_client()

    def wrong(scopes: list[str], rows: dict[str, str], allowed: Callable[[int], bool]) -> list[tuple[str, int]]:
        made = client.http.post("/api/v1/api-keys", json={"name": "k", "scopes": scopes})
        assert made.status_code == 201, made.text
        key = {"x-api-key": made.json()["key"]}
        with httpx.Client(base_url=suite.url, headers=key, trust_env=False, timeout=30) as http:
            return _wrong(http, rows, allowed)

    others = {row: path for row, path in rows.items() if row not in own}
    writes = {row: path for row, path in own.items() if row not in reads}
    assert wrong([area], others, lambda status: status == 403) == []
    assert wrong([f"{area}:read"], writes, lambda status: status == 403) == []
    assert wrong([f"{area}:read"], reads, _let_in) == []


def test_a_narrow_key_of_an_administrator_administers_nothing(
    suite: RunningSuite, admin: Account, routes: dict[str, str]
) -> None:
    scopes = ["account", "images", "vms", "stacks", "fetch"]
    made = admin.http.post("/api/v1/api-keys", json={"name": "narrow", "scopes": scopes}).json()
    with httpx.Client(base_url=suite.url, headers={"x-api-key": made["key"]}, trust_env=False, timeout=30) as http:
        assert _wrong(http, _rows(routes, Who.ADMIN), lambda status: status == 403) == []
    assert admin.http.delete(f"/api/v1/api-keys/{made['id']}").status_code == 204


def test_internal_routes_are_for_services_alone_and_not_at_the_gateway(
    suite: RunningSuite, anonymous: httpx.Client, admin: Account, client: Account
) -> None:
    internal = {row: row.partition(" ")[2] for row in MATRIX if MATRIX[row][0] is Who.SERVICE}
    for http in (anonymous, client.http, admin.http):
        assert _wrong(http, internal, lambda status: status == 404) == []
    base = suite.services["auth"]
    assert _wrong(anonymous, internal, lambda status: status == 401, base) == []
    for http in (client.http, admin.http):
        assert _wrong(http, internal, lambda status: status == 403, base) == []


def test_a_services_token_opens_internal_routes_and_no_others(
    suite: RunningSuite, anonymous: httpx.Client, routes: dict[str, str]
) -> None:
    secrets = suite.data_dir / "secrets.json"
    grant, secret = {"grant_type": "client_credentials"}, json.loads(secrets.read_text())["service_secret"]
    for wrong in (("vms", "guess"), ("nobody", secret), ("", ""), ("gateway", secret)):
        assert anonymous.post("/oauth/token", data=grant, auth=wrong).status_code == 401, wrong[0]
    answer = anonymous.post("/oauth/token", data=grant, auth=("vms", secret))
    assert answer.status_code == 200
    anonymous.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
    internal = {row: row.partition(" ")[2] for row in MATRIX if MATRIX[row][0] is Who.SERVICE}
    assert _wrong(anonymous, internal, _let_in, suite.services["auth"]) == []
    let_in = {row for row, _ in _wrong(anonymous, _rows(routes, Who.USER, Who.ADMIN), lambda status: status == 403)}
    assert sorted(let_in - READ_BY_SERVICES) == []


def _same_words(*answers: httpx.Response) -> bool:
    """Whether nothing but the ids in them differs."""
    told = [re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", answer.text) for answer in answers]
    return len({re.sub(r'"trace_id": "\w+"', "", text) for text in told}) == 1


def test_keys_and_sessions_of_another_do_not_exist(make_client: Callable[[], Account]) -> None:
    owner, other = make_client(), make_client()
    key = owner.http.post("/api/v1/api-keys", json={"name": "mine"}).json()["id"]
    session = owner.http.get("/api/v1/sessions").json()["items"][0]["id"]
    for path, existing in (("/api/v1/api-keys", key), ("/api/v1/sessions", session)):
        foreign, missing = (other.http.delete(f"{path}/{one}") for one in (existing, uuid4()))
        assert (foreign.status_code, missing.status_code) == (404, 404)
        assert _same_words(foreign, missing)
        assert existing not in other.http.get(path).text
        assert existing in owner.http.get(path).text
    assert owner.http.get("/api/v1/users/me").status_code == 200


def test_users_are_no_business_of_one_another(make_client: Callable[[], Account]) -> None:
    owner, other = make_client(), make_client()
    for method, body in (("GET", None), ("PATCH", {"disabled": True}), ("DELETE", None)):
        foreign, missing = (
            other.http.request(method, f"/api/v1/users/{one}", json=body) for one in (owner.user["id"], uuid4())
        )
        assert (foreign.status_code, missing.status_code) == (403, 403)
        assert _same_words(foreign, missing)
    assert owner.http.get("/api/v1/users/me").json() == owner.user
    assert other.user["id"] not in owner.http.get("/api/v1/users/me/usage").text


def test_operations_of_another_do_not_exist(make_client: Callable[[], Account]) -> None:
    other = make_client()
    answer = other.http.get(f"/api/v1/operations/op_vms_{uuid4().hex}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
