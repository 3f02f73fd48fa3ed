"""Calls of the older VM and stack API whose answer takes several services."""

import secrets
import time

import pytest

from libs.common.testing.stack import require_engine

from .conftest import Account


def test_a_user_made_by_userid_is_found_by_it_and_by_nobody_else(admin: Account, client: Account) -> None:
    userid = f"ext-{secrets.token_hex(4)}"
    made = admin.http.post("/users", files={"userid": (None, userid), "username": (None, f"name-{userid}")})
    assert made.status_code == 201, made.text
    found = admin.http.get(f"/users/{userid}").json()
    assert (found["userid"], found["username"]) == (userid, f"name-{userid}")
    assert (found["vms"], found["services"], found["access_urls"]) == ([], [], [])
    assert client.http.get(f"/users/{userid}").status_code == 404
    assert admin.http.get("/users/nobody-of-that-id").status_code == 404


def ended(admin: Account, operation: str) -> str:
    """The state in which an operation ended."""
    while (state := str(admin.http.get(operation).json()["state"])) in ("pending", "running"):
        time.sleep(0.1)
    return state


@pytest.mark.docker
def test_a_users_stacks_come_with_their_urls(admin: Account) -> None:
    require_engine()
    userid = f"ext-{secrets.token_hex(4)}"
    admin.http.post("/users", files={"userid": (None, userid), "username": (None, userid)})
    form = {"userid": (None, userid), "service_name": (None, "site"), "service_types": (None, "Static")}
    answer = admin.http.post("/service", files=form)
    assert answer.status_code == 202, answer.text
    operation = answer.headers["location"]
    try:
        assert ended(admin, operation) == "succeeded"
        found = admin.http.get(f"/users/{userid}").json()
        (stack,) = found["services"]
        assert stack["status"] == "running"
        assert found["access_urls"] == [f"site: {stack['urls'][0]}"]
    finally:
        stacks = admin.http.get(f"/users/{userid}").json()["services"]
        for one in stacks:
            ended(admin, admin.http.delete(f"/api/v1/stacks/{one['id']}").headers["location"])
