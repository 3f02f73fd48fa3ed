"""What no route of auth may do, whatever it is sent: take fields it does not know, or answer 5xx."""

import base64
import json
from typing import Any
from uuid import uuid4

import pytest
from fastapi.routing import iter_route_contexts

from tests.contract.auth.harness import Service

SOME = str(uuid4())
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/api/v1/users/"): {"email": "m@example.org", "username": "m", "password": "long enough"},
    ("PATCH", "/api/v1/users/me"): {"username": "m"},
    ("POST", "/api/v1/users/me/password"): {"current_password": "x", "new_password": "long enough"},
    ("PATCH", "/api/v1/users/{user_id}"): {"quota": {"vms": 1}},
    ("POST", "/api/v1/api-keys"): {"name": "k"},
    ("POST", "/internal/login"): {"username": "a", "password": "b", "address": "-"},
    ("POST", "/internal/refresh"): {"refresh_token": "x", "address": "-"},
    ("POST", "/internal/logout"): {"session_id": SOME, "user_id": SOME},
    ("POST", "/internal/api-keys/exchange"): {"key": "x", "address": "-"},
}
WITHOUT_JSON = {
    ("POST", "/users"),  # a form of older clients, who send what they like
    ("POST", "/api/v1/dead-letters/{letter_id}/replay"),
    ("POST", "/api/v1/operations/{operation_id}/resume"),
}
EXTRA: dict[str, Any] = {
    "id": SOME,
    "owner": SOME,
    "user_id": SOME,
    "is_superuser": True,
    "role_": "ADMIN",
    "version": 9,
    "password_hash": "$2b$04$x",
    "__proto__": {},
}


def test_every_body_is_known_here(service: Service) -> None:
    routes = {
        (method, route.path)
        for route in iter_route_contexts(service.app.routes)
        for method in getattr(route.original_route, "methods", None) or ()
    }
    assert {one for one in routes if one[0] in ("POST", "PUT", "PATCH")} == set(BODIES) | WITHOUT_JSON


async def _send(service: Service, method: str, path: str, **options: Any) -> Any:
    headers = service.gateway if path.startswith("/internal") else service.admin
    extra = options.pop("headers", {})
    url = path.replace("{user_id}", SOME).replace("{letter_id}", SOME)
    return await service.http.request(method, url, headers={**headers, **extra}, **options)


@pytest.mark.parametrize(
    ("route", "extra"), [(route, extra) for route in BODIES for extra in EXTRA if extra not in BODIES[route]]
)
async def test_a_field_that_is_not_the_clients_to_set_is_refused(
    service: Service, route: tuple[str, str], extra: str
) -> None:
    answer = await _send(service, *route, json={**BODIES[route], extra: EXTRA[extra]})
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == [f"/body/{extra}"]


@pytest.mark.parametrize("route", BODIES, ids=" ".join)
async def test_a_body_that_is_no_object_is_a_problem(service: Service, route: tuple[str, str]) -> None:
    for body in (b"", b"[]", b"null", b'"text"', b"{", b"\xff\xfe", b"[" * 20_000, b'{"a":' + b"9" * 5000 + b"}"):
        answer = await _send(service, *route, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), (body[:20], answer.status_code)
        assert answer.headers["content-type"] == "application/problem+json"
    as_text = await _send(service, *route, content=b"{}", headers={"content-type": "text/plain"})
    assert as_text.status_code in (415, 422)


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\udfff\ud800", "x" * 100_000, "\u202e", "'; DROP TABLE users; --"])
@pytest.mark.parametrize("route", BODIES, ids=" ".join)
async def test_no_text_makes_an_answer_of_5xx(service: Service, route: tuple[str, str], text: str) -> None:
    for name, value in BODIES[route].items():
        changed = [text] if isinstance(value, list) else {text: 1} if isinstance(value, dict) else text
        body = json.dumps({**BODIES[route], name: changed})
        answer = await _send(service, *route, content=body, headers={"content-type": "application/json"})
        assert answer.status_code < 500, (name, answer.text)
    hostile = json.dumps({**BODIES[route], text: 1})
    answer = await _send(service, *route, content=hostile, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("path", ["/api/v1/users/", "/api/v1/audit", "/api/v1/api-keys"])
async def test_no_query_makes_an_answer_of_5xx(service: Service, path: str) -> None:
    for query in (
        {"search": "a\0b", "actor_id": "a\0b"},
        {"search": "%_\\", "target": "a\0"},
        {"limit": "0"},
        {"limit": "9" * 400},
        {"sort": "password_hash"},
        {"sort": "-"},
        {"sort": "id; DROP TABLE users"},
        {"role": "ROOT"},
        {"cursor": "!"},
        {"cursor": "é"},
    ):
        answer = await service.http.get(path, params=query, headers=service.admin)
        assert answer.status_code in (200, 422), (query, answer.text)
    assert (await service.http.get(path, params={"sort": "password_hash"}, headers=service.admin)).status_code == 422


FORGED_CURSORS: dict[str, Any] = {
    "not a list": {"a": 1},
    "empty": [],
    "nothing after the order": [None],
    "a number": [None, 5],
    "a text": [None, "x"],
    "a boolean": [None, True],
    "null": [None, None],
    "a list": [None, []],
    "a date": [None, {"at": "2026-01-01T00:00:00+00:00"}],
    "a bad date": [None, {"at": "soon"}],
    "a bad id": [None, {"uuid": "x"}],
    "an object": [None, {"x": 1}],
    "two values": [None, {"uuid": SOME}, {"uuid": SOME}],
    "another order": ["name", {"uuid": SOME}],
    "NaN": [None, float("nan")],
    "a huge number": [None, 10**400],
    "deep": [None, [[[[]]]]],
}


@pytest.mark.parametrize("name", FORGED_CURSORS)
@pytest.mark.parametrize("path", ["/api/v1/users/", "/api/v1/audit", "/api/v1/api-keys"])
async def test_a_forged_cursor_is_refused(service: Service, path: str, name: str) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps(FORGED_CURSORS[name]).encode()).decode().rstrip("=")
    answer = await service.http.get(path, params={"cursor": cursor}, headers=service.admin)
    if (path, name) == ("/api/v1/audit", "a number"):
        assert answer.status_code == 200
    else:
        assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("path", ["/users/a%00b", "/api/v1/users/a%00b", "/api/v1/sessions/%ff", "/problems/%00"])
async def test_no_path_makes_an_answer_of_5xx(service: Service, path: str) -> None:
    assert (await service.http.get(path, headers=service.admin)).status_code < 500


@pytest.mark.parametrize("form", [{"userid": "a\0b", "username": "b"}, {"userid": "b", "username": "a\0b"}])
async def test_a_form_with_nul_is_a_422(service: Service, form: dict[str, str]) -> None:
    assert (await service.http.post("/users", data=form, headers=service.admin)).status_code == 422
