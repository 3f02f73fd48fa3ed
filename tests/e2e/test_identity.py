"""Logging in, roles, keys and sessions, through the gateway."""

import re
from collections.abc import Callable

import httpx
import pytest

from .conftest import PASSWORD, REVOKED_S, Account, RunningSuite, log_in

COPYING = {"images", "vms", "containers", "fetcher"}
"""The services that keep copies of accounts."""


def test_a_form_logs_in_as_well_as_json(suite: RunningSuite, admin: Account) -> None:
    answer = httpx.post(f"{suite.url}/api/v1/login", data={"username": suite.username, "password": suite.password})
    assert answer.status_code == 200
    assert answer.json()["token_type"] == "bearer"
    assert answer.json()["user"]["role"] == "ADMIN"
    assert admin.http.get("/protected").json()["role"] == "ADMIN"


def test_an_email_in_any_case_is_a_name(suite: RunningSuite, client: Account) -> None:
    session = log_in(suite.url, client.user["email"].upper(), PASSWORD)
    assert session["user"]["id"] == client.user["id"]


def test_a_wrong_password_and_a_missing_name_answer_alike(suite: RunningSuite, client: Account) -> None:
    def refused(username: str) -> dict[str, object]:
        answer = httpx.post(f"{suite.url}/api/v1/login", json={"username": username, "password": "not it at all"})
        assert answer.status_code == 401
        document: dict[str, object] = answer.json()
        document.pop("trace_id", None)
        return document

    assert refused(client.user["username"]) == refused("nobody-of-that-name")


def test_a_client_may_not_do_what_only_an_administrator_may(client: Account) -> None:
    answer = client.http.get("/api/v1/users/")
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/forbidden"
    assert client.http.get("/api/v1/users/me").json()["username"] == client.user["username"]


def test_every_service_reads_the_accounts_that_it_may_not_have_heard_of(
    suite: RunningSuite, within: Callable[..., float]
) -> None:
    def have_read() -> set[str]:
        return set(re.findall(r"/internal/accounts[^\n]*service:([a-z]+)", suite.logged()))

    within(lambda: len(have_read()) == len(COPYING), 30)
    assert have_read() == COPYING


def test_a_deleted_key_is_refused_by_event(suite: RunningSuite, client: Account, within: Callable[..., float]) -> None:
    made = client.http.post("/api/v1/api-keys", json={"name": "laptop"}).json()
    headers = {"x-api-key": made["key"]}

    def status() -> int:
        return httpx.get(f"{suite.url}/api/v1/users/me", headers=headers).status_code

    assert status() == 200
    assert client.http.get("/api/v1/api-keys").json()["items"][0]["last_used"] is not None
    assert client.http.delete(f"/api/v1/api-keys/{made['id']}").status_code == 204
    within(lambda: status() == 401, REVOKED_S)


def test_a_key_reaches_only_what_its_scopes_allow(suite: RunningSuite, client: Account) -> None:
    key = client.http.post("/api/v1/api-keys", json={"name": "reader", "scopes": ["account:read"]}).json()["key"]
    with httpx.Client(base_url=suite.url, headers={"x-api-key": key}) as http:
        assert http.get("/api/v1/users/me").status_code == 200
        assert http.patch("/api/v1/users/me", json={"username": "other"}).status_code == 403
        assert http.get("/api/v1/images").status_code == 403
        wider = http.post("/api/v1/api-keys", json={"name": "wider", "scopes": ["account"]})
        assert wider.status_code == 403


def test_a_key_bound_to_another_network_is_refused(suite: RunningSuite, client: Account) -> None:
    made = client.http.post("/api/v1/api-keys", json={"name": "far", "cidrs": ["192.0.2.0/24"]}).json()
    answer = httpx.get(f"{suite.url}/api/v1/users/me", headers={"x-api-key": made["key"]})
    assert answer.status_code == 401
    assert answer.json()["type"] == "/problems/bad-api-key"


def test_using_a_refresh_token_twice_ends_the_session(
    suite: RunningSuite, client: Account, within: Callable[..., float]
) -> None:
    def refresh(token: str) -> httpx.Response:
        return httpx.post(f"{suite.url}/api/v1/token/refresh", json={"refresh_token": token})

    first = client.session["refresh_token"]
    second = refresh(first).json()
    assert second["refresh_token"] != first
    assert refresh(first).status_code == 401
    assert refresh(second["refresh_token"]).status_code == 401
    within(lambda: client.http.get("/api/v1/users/me").status_code == 401, REVOKED_S)
    bearer = {"authorization": f"Bearer {second['access_token']}"}
    within(lambda: httpx.get(f"{suite.url}/protected", headers=bearer).status_code == 401, REVOKED_S)


def test_logging_out_ends_the_access_token_everywhere(
    suite: RunningSuite, client: Account, within: Callable[..., float]
) -> None:
    token = client.session["access_token"]
    assert client.http.post("/api/v1/logout").status_code == 204
    within(lambda: client.http.get("/api/v1/users/me").status_code == 401, REVOKED_S)
    for service, url in suite.services.items():
        if service == "auth":
            bearer = {"authorization": f"Bearer {token}"}
            within(
                lambda url=url, bearer=bearer: httpx.get(f"{url}/api/v1/users/me", headers=bearer).status_code == 401,
                REVOKED_S,
            )


def test_a_disabled_user_is_out_by_event_and_back_when_enabled(
    suite: RunningSuite, admin: Account, client: Account, within: Callable[..., float]
) -> None:
    path = f"/api/v1/users/{client.user['id']}"
    assert admin.http.patch(path, json={"disabled": True}).status_code == 200
    within(lambda: client.http.get("/api/v1/users/me").status_code == 401, REVOKED_S)
    body = {"username": client.user["username"], "password": PASSWORD}
    assert httpx.post(f"{suite.url}/api/v1/login", json=body).status_code == 403
    assert admin.http.patch(path, json={"disabled": False}).status_code == 200
    assert log_in(suite.url, client.user["username"], PASSWORD)


def test_a_change_meant_for_an_older_version_is_refused(admin: Account, client: Account) -> None:
    path = f"/api/v1/users/{client.user['id']}"
    seen = admin.http.get(path).headers["etag"]
    assert admin.http.patch(path, json={"quota": {"vms": 3}}, headers={"if-match": seen}).status_code == 200
    late = admin.http.patch(path, json={"quota": {"vms": 99}}, headers={"if-match": seen})
    assert late.status_code == 412
    assert admin.http.get(path).json()["quota"]["vms"] == 3


def test_guessing_locks_the_guesser_for_that_name_and_not_others(suite: RunningSuite, client: Account) -> None:
    body = {"username": client.user["username"], "password": "guess"}
    codes = [httpx.post(f"{suite.url}/api/v1/login", json=body).status_code for _ in range(7)]
    assert codes[0] == 401
    assert codes[-1] == 429
    last = httpx.post(f"{suite.url}/api/v1/login", json=body)
    assert int(last.headers["retry-after"]) > 0
    log_in(suite.url, suite.username, suite.password)


def test_a_user_changes_the_password_and_the_old_one_ends(suite: RunningSuite, client: Account) -> None:
    body = {"current_password": PASSWORD, "new_password": "another good password"}
    assert client.http.post("/api/v1/users/me/password", json=body).status_code == 204
    old = {"username": client.user["username"], "password": PASSWORD}
    assert httpx.post(f"{suite.url}/api/v1/login", json=old).status_code == 401
    assert log_in(suite.url, client.user["username"], "another good password")


@pytest.mark.parametrize("password", ["short", " " * 12, "x" * 5000])
def test_an_unusable_password_is_refused_with_what_to_do(admin: Account, password: str) -> None:
    body = {"email": "unusable@example.org", "username": "unusable", "password": password}
    answer = admin.http.post("/api/v1/users/", json=body)
    assert answer.status_code == 422
    assert password not in answer.text


def test_the_audit_log_tells_who_did_what_and_is_intact(admin: Account, client: Account) -> None:
    entries = admin.http.get("/api/v1/audit", params={"target": client.user["id"]}).json()["items"]
    assert [entry["action"] for entry in entries] == ["user.created"]
    assert entries[0]["actor"] == "admin"
    assert admin.http.get("/api/v1/audit/verify").json()["intact"] is True
    assert client.http.get("/api/v1/audit").status_code == 403
