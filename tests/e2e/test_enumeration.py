"""Nobody learns from answers which names, keys or ids there are."""

import re
from collections.abc import Callable
from uuid import uuid4

import httpx
import pytest

from .conftest import PASSWORD, Account, RunningSuite


def _told(answer: httpx.Response) -> tuple[int, str, list[tuple[str, str]]]:
    """Status, body and headers of an answer, without what differs for every request."""
    body = re.sub(r'"(trace_id|instance)": "[^"]*"', "", answer.text)
    own = ("date", "x-request-id", "content-length", "traceparent")
    return answer.status_code, body, sorted(pair for pair in answer.headers.items() if pair[0] not in own)


@pytest.fixture
def quiet_names(admin: Account, make_client: Callable[[], Account]) -> list[str]:
    """Names of accounts of every kind, and some of nobody."""
    usual, disabled = make_client(), make_client()
    assert admin.http.patch(f"/api/v1/users/{disabled.user['id']}", json={"disabled": True}).status_code == 200
    external = f"ext-{uuid4().hex[:8]}"
    form = {"userid": external, "username": external}
    assert admin.http.post("/users", data=form).status_code == 201
    return [
        *(usual.user["username"], usual.user["email"], disabled.user["username"], external),
        *("nobody-of-that-name", "nobody@example.org", "service-account"),
    ]


def test_a_login_tells_no_existing_name_from_a_missing_one(suite: RunningSuite, quiet_names: list[str]) -> None:
    answers = [
        httpx.post(f"{suite.url}/api/v1/login", json={"username": name, "password": "not it at all"})
        for name in quiet_names
    ]
    assert answers[0].status_code == 401
    assert answers[0].json()["type"] == "/problems/bad-credentials"
    assert all(_told(answer) == _told(answers[0]) for answer in answers)


def test_refresh_tokens_and_keys_that_never_were_answer_like_those_that_ended(
    suite: RunningSuite, client: Account
) -> None:
    key = client.http.post("/api/v1/api-keys", json={"name": "gone"}).json()
    assert client.http.delete(f"/api/v1/api-keys/{key['id']}").status_code == 204
    gone, never, bound = (
        httpx.get(f"{suite.url}/api/v1/users/me", headers={"x-api-key": text})
        for text in (
            key["key"],
            "tlr_AAAAAAAA_" + "B" * 49,
            client.http.post("/api/v1/api-keys", json={"name": "far", "cidrs": ["192.0.2.0/24"]}).json()["key"],
        )
    )
    assert gone.status_code == 401
    assert _told(gone) == _told(never) == _told(bound)
    token = client.session["refresh_token"]
    assert client.http.post("/api/v1/logout").status_code == 204
    ended, unknown = (
        httpx.post(f"{suite.url}/api/v1/token/refresh", json={"refresh_token": text}) for text in (token, "x" * 43)
    )
    assert ended.status_code == 401
    assert _told(ended) == _told(unknown)


def test_an_older_clients_userid_shows_nothing_to_another(admin: Account, client: Account) -> None:
    external = f"ext-{uuid4().hex[:8]}"
    assert admin.http.post("/users", data={"userid": external, "username": external}).status_code == 201
    missing = external[:-1] + ("0" if external[-1] != "0" else "1")
    seen, unseen = client.http.get(f"/users/{external}"), client.http.get(f"/users/{missing}")
    assert (seen.status_code, unseen.status_code) == (404, 404)
    assert _told(seen)[1].replace(external, "") == _told(unseen)[1].replace(missing, "")


def test_registration_that_is_closed_does_not_say_which_names_are_taken(suite: RunningSuite, client: Account) -> None:
    def register(username: str) -> httpx.Response:
        body = {"email": f"{username}@example.org", "username": username, "password": PASSWORD}
        return httpx.post(f"{suite.url}/api/v1/users/", json=body)

    taken, free = register(client.user["username"]), register("a-free-name")
    assert taken.status_code == 403
    assert _told(taken) == _told(free)
