"""What happens when somebody logs in, refreshes or logs out at the very moment at which an account is changed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import bcrypt
import psycopg
import pytest

from services.auth.repository import _AUDIT_LOCK
from tests.contract.auth.harness import PASSWORD, Service, running

Eventually = Callable[..., Awaitable[None]]
FRESH = "another good password"
_WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
async def service(new_database_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    async with running(new_database_url, tmp_path, account_failures=1, network_failures=1) as service:
        yield service


@contextlib.asynccontextmanager
async def holding(service: Service, query: str, *values: Any) -> AsyncIterator[psycopg.AsyncConnection]:
    """Another replica's transaction that has come as far as this; it ends with the block."""
    async with await psycopg.AsyncConnection.connect(service.settings.database_url) as connection:
        await connection.execute(query.encode(), values)
        yield connection


async def change_password(service: Service, headers: dict[str, str], fresh: str = FRESH) -> int:
    body = {"current_password": PASSWORD, "new_password": fresh}
    return (await service.http.post("/api/v1/users/me/password", json=body, headers=headers)).status_code


async def test_a_login_that_was_checked_against_the_old_password_opens_nothing(
    service: Service, eventually: Eventually
) -> None:
    person = await service.person()
    old = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()  # so that the login brings a better hash along
    fresh = bcrypt.hashpw(FRESH.encode(), bcrypt.gensalt(4)).decode()
    await service.change("UPDATE users SET password_hash = %s WHERE id = %s", old, person.id)
    change = "UPDATE users SET password_hash = %s WHERE id = %s"
    async with holding(service, change, fresh, person.id):
        login = asyncio.create_task(service.login(person.username))
        await eventually(lambda: service.rows(_WAITING))
    assert (await login).status_code == 401
    assert service.rows("SELECT password_hash FROM users WHERE id = %s", person.id) == [(fresh,)]
    assert service.rows("SELECT 1 FROM sessions WHERE user_id = %s", person.id) == []


async def test_a_key_used_as_it_is_deleted_is_not_valid(service: Service, eventually: Eventually) -> None:
    person = await service.person()
    key = await service.key(person.headers)
    async with holding(service, "DELETE FROM api_keys WHERE id = %s", key["id"]):
        use = asyncio.create_task(service.exchange(key["key"]))
        await eventually(lambda: service.rows(_WAITING))
    answer = await use
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/bad-api-key")


async def test_a_user_deleted_meanwhile_makes_no_key(service: Service, eventually: Eventually) -> None:
    person = await service.person()
    async with holding(service, "DELETE FROM users WHERE id = %s", person.id):
        making = asyncio.create_task(
            service.http.post("/api/v1/api-keys", json={"name": "key"}, headers=person.headers)
        )
        await eventually(lambda: service.rows(_WAITING))
    answer = await making
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/user-not-found")


async def test_of_two_changes_of_one_password_at_once_the_second_is_refused(service: Service) -> None:
    person = await service.person()
    fresh = [f"{FRESH} {number}" for number in range(4)]
    codes = await asyncio.gather(*(change_password(service, person.headers, one) for one in fresh))
    assert sorted(codes) == [204, 401, 401, 401]
    assert (await service.login(person.username, fresh[codes.index(204)])).status_code == 200


@pytest.mark.parametrize(("method", "body"), [("PATCH", {"disabled": True}), ("DELETE", None)])
async def test_a_session_refreshed_while_its_user_goes_is_revoked_by_its_id(
    service: Service, eventually: Eventually, method: str, body: Any
) -> None:
    person = await service.person()
    grant = await service.session(person)
    touch = "UPDATE sessions SET last_used_at = now() WHERE id = %s"
    async with holding(service, touch, grant["session_id"]):  # whose token the gateway signs a moment later
        going = asyncio.create_task(
            service.http.request(method, f"/api/v1/users/{person.id}", json=body, headers=service.admin)
        )
        await eventually(lambda: service.rows(_WAITING))
    assert (await going).is_success
    revoked = {(scope, subject) for scope, subject in service.rows("SELECT scope, subject_id FROM revocations")}
    assert {("user", person.id), ("session", grant["session_id"])} <= revoked
    await eventually(lambda: [one for one in service.heard if one.data.get("revokes")])
    told = {(one["scope"], one["id"]) for heard in service.heard for one in heard.data.get("revokes") or ()}
    assert told == revoked


@pytest.mark.parametrize(("method", "body"), [("PATCH", {"disabled": True}), ("DELETE", None)])
async def test_whoever_changes_a_user_waits_for_its_sessions_without_the_audit_logs_lock(
    service: Service, eventually: Eventually, method: str, body: Any
) -> None:
    person = await service.person()
    grant = await service.session(person)
    async with holding(service, "SELECT 1 FROM sessions WHERE id = %s FOR UPDATE", grant["session_id"]) as logout:
        change = asyncio.create_task(
            service.http.request(method, f"/api/v1/users/{person.id}", json=body, headers=service.admin)
        )
        await eventually(lambda: service.rows(_WAITING))
        await logout.execute("SELECT pg_advisory_xact_lock(%s)", (_AUDIT_LOCK,))  # a deadlock would end one of the two
    assert (await change).is_success


async def test_a_failed_login_waits_for_its_networks_count_without_the_audit_logs_lock(
    service: Service, eventually: Eventually
) -> None:
    count = "INSERT INTO login_failures VALUES ('network:198.51.100.0/24', 0, now() + interval '1 hour')"
    async with holding(service, count) as other:
        login = asyncio.create_task(service.login("nobody", "wrong"))
        await eventually(lambda: service.rows(_WAITING))
        await other.execute("SELECT pg_advisory_xact_lock(%s)", (_AUDIT_LOCK,))
    assert (await login).status_code == 401
