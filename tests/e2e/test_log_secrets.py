"""Canary secrets sent through every route of the gateway and auth, rightly and wrongly, turn up nowhere."""

import json
import re
import secrets
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from .conftest import Account, RunningSuite

PVE_SECRET = "c0ffee00-1234-4abc-8def-0123456789ab"
PRIVATE = "MC4CAQAwBQYDK2VwBCIEIcanaryCANARYcanaryCANARY"
CANARIES = {
    "password": "cAnaRy-password-0123456789",
    "refresh token": "cAnaRy-refresh-token-0123456789-0123456789x",
    "API key": "tlr_cAnaRy00_" + "cAnaRy" * 8 + "0",
    "JWT": "eyJhbGciOiJFZERTQSJ9.eyJjQW5hUnkiOiJjQW5hUnkifQ.cAnaRycAnaRycAnaRy",
    "opaque bearer": "cAnaRy-bearer-0123456789",
    "URL password": "cAnaRy-in-a-url-0123456789",
    "PVE secret": PVE_SECRET,
    "private key": PRIVATE,
}
FIELDS = {
    "password": CANARIES["password"],
    "current_password": CANARIES["password"],
    "new_password": CANARIES["password"],
    "admin_pass": CANARIES["password"],
    "refresh_token": CANARIES["refresh token"],
    "token": CANARIES["JWT"],
    "key": CANARIES["API key"],
    "url": f"https://bob:{CANARIES['URL password']}@git.example/x.git",
    "token_id": f"PVEAPIToken=root@pam!ci={PVE_SECRET}",
    "ssh_key": f"-----BEGIN PRIVATE KEY-----\n{PRIVATE}\n-----END PRIVATE KEY-----",
}
HEADERS = (
    {"authorization": f"Bearer {CANARIES['JWT']}"},
    {"authorization": f"Bearer {CANARIES['opaque bearer']}"},
    {"authorization": f"Basic {CANARIES['opaque bearer']}"},
    {"authorization": CANARIES["opaque bearer"]},
    {"x-api-key": CANARIES["API key"]},
    {"cookie": f"session={CANARIES['refresh token']}"},
)
STREAMS = re.compile(r"/events$|^/logs/")


@pytest.fixture
def routes(suite: RunningSuite) -> list[tuple[str, str]]:
    """Methods and paths of the gateway and auth, but for streams."""
    document = httpx.get(f"{suite.url}/openapi.json").json()
    areas = ("/api/v1/users", "/users", "/api/v1/api-keys", "/api/v1/sessions", "/api/v1/audit", "/api/v1/login")
    own = ("/api/v1/token", "/api/v1/operations", "/api/v1/dead-letters", "/protected", "/heartbeat", "/.well-known")
    return [
        (method.upper(), re.sub(r"{[^}]*}", str(uuid4()), path))
        for path, item in document["paths"].items()
        for method in item
        if path.startswith(areas + own) and not STREAMS.search(path)
    ]


def _log_lines(http: httpx.Client, until: str) -> str:
    """What the live log has kept, up to the line that has a request's id."""
    lines = []
    with http.stream("GET", "/logs/stream") as stream:
        for line in stream.iter_lines():
            lines.append(line)
            if until in line:
                break
    return "\n".join(lines)


def _send_all(http: httpx.Client, routes: list[tuple[str, str]], **options: Any) -> list[httpx.Response]:
    return [http.request(method, path, **options) for method, path in routes]


def test_no_canary_turns_up_in_logs_problems_events_or_the_audit_log(
    suite: RunningSuite, admin: Account, make_client: Callable[[], Account], routes: list[tuple[str, str]]
) -> None:
    assert len(routes) > 20
    client = make_client()
    answers: list[httpx.Response] = []
    with httpx.Client(base_url=suite.url, trust_env=False, timeout=30) as anonymous:
        for headers in HEADERS:
            answers += _send_all(anonymous, routes, headers=headers)
        answers += _send_all(anonymous, routes, params=FIELDS)
        for http in (anonymous, client.http):
            writes = [one for one in routes if one[0] != "GET"]
            answers += _send_all(http, writes, json=FIELDS)
            answers += _send_all(http, writes, data=FIELDS)
            broken = json.dumps(FIELDS)[:-5].encode()
            answers += _send_all(http, writes, content=broken, headers={"content-type": "application/json"})
        anonymous.post("/oauth/token", auth=("vms", CANARIES["password"]))
        for path in (CANARIES["API key"], CANARIES["JWT"]):
            anonymous.get(f"/api/v1/sessions/{path}")
            client.http.get(f"/api/v1/sessions/{path}")
    real = {f"real {name}": text for name, text in _use_real_secrets(suite, client).items()}

    mark = secrets.token_hex(8)
    admin.http.get("/api/v1/users/me", headers={"x-request-id": mark})
    places = {
        "live log": _log_lines(admin.http, mark),
        "printed": suite.logged(),
        "problems": "\n".join(answer.text for answer in answers),
        "audit": admin.http.get("/api/v1/audit", params={"limit": 200}).text,
        "operations": admin.http.get("/api/v1/operations").text,
        "metrics": httpx.get(f"{suite.url}/metrics").text,
    }
    assert "request_refused" in places["live log"]
    assert all(answer.status_code < 500 for answer in answers)
    found = [
        (name, place) for name, secret in (CANARIES | real).items() for place, text in places.items() if secret in text
    ]
    assert found == []


def _use_real_secrets(suite: RunningSuite, client: Account) -> dict[str, str]:
    """Use good credentials in each way they are used; gives them."""
    made = client.http.post("/api/v1/api-keys", json={"name": "canary"}).json()
    assert httpx.get(f"{suite.url}/api/v1/users/me", headers={"x-api-key": made["key"]}).status_code == 200
    first = client.session["refresh_token"]
    refreshed = httpx.post(f"{suite.url}/api/v1/token/refresh", json={"refresh_token": first})
    assert refreshed.headers["cache-control"] == "no-store"
    answer = refreshed.json()
    bearer = {"authorization": f"Bearer {answer['access_token']}"}
    assert httpx.get(f"{suite.url}/protected", headers=bearer).status_code == 200
    assert httpx.post(f"{suite.url}/api/v1/token/refresh", json={"refresh_token": first}).status_code == 401
    return {
        "API key": made["key"],
        "refresh token": first,
        "next refresh token": answer["refresh_token"],
        "access token": answer["access_token"],
        "older access token": client.session["access_token"],
    }
