"""What the gateway answers by itself, and how it refuses."""

import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from .conftest import Account, RunningSuite


def test_the_front_page_heartbeat_and_health_need_no_login(suite: RunningSuite) -> None:
    assert httpx.get(f"{suite.url}/").json()["name"] == "Telar"
    assert httpx.get(f"{suite.url}/heartbeat").json() == {"status": "ok"}
    health = httpx.get(f"{suite.url}/api/v1/health")
    assert health.status_code == 200
    assert health.json()["services"]["auth"]["checks"]["database"] == "ok"


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/auth"])
def test_the_documentation_needs_nothing_from_elsewhere(suite: RunningSuite, path: str) -> None:
    page = httpx.get(suite.url + path)
    assert page.status_code == 200
    assert "cdn" not in page.text
    for line in page.text.splitlines():
        for mark in ('src="', 'href="'):
            if mark in line:
                address = line.split(mark)[1].split('"')[0]
                assert address.startswith("/docs/assets/"), address
                assert httpx.get(suite.url + address).status_code == 200


def test_the_merged_document_has_every_services_routes(suite: RunningSuite) -> None:
    paths = httpx.get(f"{suite.url}/openapi.json").json()["paths"]
    assert "/api/v1/users/me" in paths
    assert "/api/v1/login" in paths
    assert not [path for path in paths if path.startswith("/internal")]


def test_internal_routes_are_not_reachable_from_outside(suite: RunningSuite, admin: Account) -> None:
    for path in ("/internal/revocations", "/internal/login", "/api/v1/../../internal/revocations"):
        assert admin.http.get(path).status_code in (400, 404), path
    direct = httpx.get(f"{suite.services['auth']}/internal/revocations", headers=admin.http.headers)
    assert direct.status_code == 403


@pytest.mark.parametrize(
    ("body", "content_type", "status", "slug"),
    [
        (b"{not json", "application/json", 400, "malformed-request"),
        (b'{"email": 3, "username": [], "password": null}', "application/json", 422, "invalid"),
        (
            b'{"email":"a@example.org","username":"a","password":"long enough","is_superuser":true}',
            "application/json",
            422,
            "invalid",
        ),
        (b'{"email":"' + b"x" * 2_000_000 + b'"}', "application/json", 413, "too-large"),
    ],
    ids=["malformed JSON", "wrong types", "unknown field", "oversized"],
)
def test_bad_input_gets_a_clear_problem(admin: Account, body: bytes, content_type: str, status: int, slug: str) -> None:
    answer = admin.http.post("/api/v1/users/", content=body, headers={"content-type": content_type})
    assert answer.status_code == status
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["type"] == f"/problems/{slug}"
    assert problem["status"] == status
    assert problem["trace_id"]
    page = admin.http.get(problem["type"])
    assert page.status_code == 200


def _lines(response: httpx.Response) -> Iterator[dict[str, object]]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_the_log_stream_shows_lines_to_administrators_only(
    suite: RunningSuite, admin: Account, client: Account
) -> None:
    assert httpx.get(f"{suite.url}/logs/stream").status_code == 401
    assert client.http.get("/logs/stream").status_code == 403
    with admin.http.stream("GET", "/logs/stream", params={"service": "auth"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        admin.http.get("/api/v1/users/me", headers={"x-request-id": "findme123"})
        line = next(line for line in _lines(stream) if line.get("request_id") == "findme123")
    assert line["service"] == "auth"
    assert line["status"] == 200


def test_events_reach_their_owner_and_nobody_else(admin: Account, make_client: Callable[[], Account]) -> None:
    owner, other = make_client(), make_client()
    with (
        owner.http.stream("GET", "/api/v1/events", params={"types": "auth.quota.*"}) as own,
        other.http.stream("GET", "/api/v1/events", params={"types": "auth.quota.*"}) as foreign,
    ):
        own_events, foreign_events = _lines(own), _lines(foreign)
        for account, limit in ((owner, 7), (other, 8)):
            path = f"/api/v1/users/{account.user['id']}"
            assert admin.http.patch(path, json={"quota": {"vms": limit}}).status_code == 200
        assert next(own_events)["subject"] == owner.user["id"]
        assert next(foreign_events)["subject"] == other.user["id"]


def test_an_open_stream_ends_when_its_session_is_revoked(client: Account) -> None:
    with client.http.stream("GET", "/api/v1/events") as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": telar"
        assert client.http.post("/api/v1/logout").status_code == 204
        assert [line for line in lines if line] == []


def test_identity_headers_of_a_client_mean_nothing(suite: RunningSuite, admin: Account, client: Account) -> None:
    forged = {"x-user-id": admin.user["id"], "x-telar-role": "ADMIN", "remote-user": "admin", "x_user_id": "admin"}
    assert httpx.get(f"{suite.url}/api/v1/users/me", headers=forged).status_code == 401
    assert client.http.get("/api/v1/users/me", headers=forged).json()["id"] == client.user["id"]


def test_only_configured_origins_get_cors_headers(suite: RunningSuite) -> None:
    allowed = httpx.get(f"{suite.url}/heartbeat", headers={"origin": "http://localhost:3000"})
    assert allowed.headers["access-control-allow-origin"] == "http://localhost:3000"
    foreign = httpx.get(f"{suite.url}/heartbeat", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in foreign.headers


def test_signing_keys_are_public_and_have_no_private_part(suite: RunningSuite) -> None:
    keys = httpx.get(f"{suite.url}/.well-known/jwks.json").json()["keys"]
    assert keys
    assert all("d" not in key and key["crv"] == "Ed25519" for key in keys)
