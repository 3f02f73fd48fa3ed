import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import bcrypt
import pytest

from tests.contract.auth.harness import PASSWORD, Service, told

Eventually = Callable[..., Awaitable[None]]


async def test_a_login_opens_a_session(service: Service) -> None:
    person = await service.person()
    for name in (person.username, person.email.upper()):
        answer = await service.login(name)
        grant = answer.json()
        assert answer.status_code == 200
        assert grant["user"]["id"] == person.id
        assert grant["scopes"] == ["account", "images", "vms", "stacks", "fetch"]
        assert len(grant["refresh_token"]) >= 43
    stored = service.rows("SELECT digest FROM refresh_tokens")
    assert grant["refresh_token"] not in str(stored)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"username": "a", "address": "-"},
        {"username": "", "password": "x", "address": "-"},
        {"username": "x" * 321, "password": "x", "address": "-"},
        {"username": "a", "password": "x" * 4097, "address": "-"},
        {"username": ["a"], "password": "x", "address": "-"},
        {"username": "a", "password": {"$ne": ""}, "address": "-"},
        {"username": "a\0b", "password": "x", "address": "-"},
    ],
    ids=",".join,
)
async def test_a_login_that_makes_no_sense_is_a_422(service: Service, body: dict[str, Any]) -> None:
    assert (await service.http.post("/internal/login", json=body, headers=service.gateway)).status_code == 422


async def test_a_login_from_no_address_at_all_still_works(service: Service) -> None:
    person = await service.person()
    for address in ("-", "not an address", "fe80::1%eth0", "::ffff:198.51.100.9"):
        assert (await service.login(person.username, address=address)).status_code == 200


async def test_a_missing_name_and_a_wrong_password_cannot_be_told_apart(service: Service) -> None:
    person, imported = await service.person(), await service.person()
    digest = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    await service.change("UPDATE users SET password_hash = %s WHERE id = %s", digest, imported.id)
    await service.change("UPDATE users SET password_hash = NULL WHERE id = %s", (await service.person()).id)
    answers = [
        await service.login(name, password)
        for name in (person.username, person.email, imported.username, "nobody-there", "user-3")
        for password in ("wrong one", "x" * 2000)
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert all(told(answer) == told(answers[0]) for answer in answers)
    headers = [{name: value for name, value in a.headers.items() if name != "x-request-id"} for a in answers]
    assert all(one == headers[0] for one in headers)


@pytest.mark.parametrize("prefix", [b"2b", b"2a"])
async def test_a_bcrypt_hash_made_elsewhere_works_and_becomes_argon2id(service: Service, prefix: bytes) -> None:
    person = await service.person()
    digest = bcrypt.hashpw(b"from the old installation", bcrypt.gensalt(4, prefix)).decode()
    await service.change("UPDATE users SET password_hash = %s WHERE id = %s", digest, person.id)
    assert (await service.login(person.username, "from the old installatioN")).status_code == 401
    assert service.rows("SELECT password_hash FROM users WHERE id = %s", person.id) == [(digest,)]
    assert (await service.login(person.username, "from the old installation")).status_code == 200
    [(upgraded,)] = service.rows("SELECT password_hash FROM users WHERE id = %s", person.id)
    assert upgraded.startswith("$argon2id$")
    assert (await service.login(person.username, "from the old installation")).status_code == 200


async def test_a_php_bcrypt_hash_works_too(service: Service) -> None:
    person = await service.person()
    digest = bcrypt.hashpw(b"from PHP", bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")
    await service.change("UPDATE users SET password_hash = %s WHERE id = %s", digest, person.id)
    assert (await service.login(person.username, "from PHP")).status_code == 200


async def test_what_bcrypt_would_cut_off_is_not_ignored(service: Service) -> None:
    person = await service.person()
    digest = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    await service.change("UPDATE users SET password_hash = %s WHERE id = %s", digest, person.id)
    assert (await service.login(person.username, "x" * 73)).status_code == 401
    assert (await service.login(person.username, "x" * 72 + "é")).status_code == 401
    assert (await service.login(person.username, "x" * 72)).status_code == 200


async def test_a_refresh_token_is_used_once_and_leads_to_the_next(service: Service) -> None:
    grant = await service.session(await service.person())
    tokens = [grant["refresh_token"]]
    for _ in range(3):
        answer = await service.refresh(tokens[-1])
        assert answer.status_code == 200
        assert answer.json()["session_id"] == grant["session_id"]
        tokens.append(answer.json()["refresh_token"])
    assert len(set(tokens)) == 4


async def test_of_twenty_uses_of_one_refresh_token_at_once_one_wins_and_the_family_ends(
    service: Service, eventually: Eventually
) -> None:
    person = await service.person()
    grant, other = await service.session(person), await service.session(person)
    answers = await asyncio.gather(*(service.refresh(grant["refresh_token"]) for _ in range(20)))
    won = [answer for answer in answers if answer.status_code == 200]
    assert len(won) == 1
    assert {answer.status_code for answer in answers} == {200, 401}
    assert (await service.refresh(won[0].json()["refresh_token"])).status_code == 401
    assert (await service.refresh(other["refresh_token"])).status_code == 200
    await eventually(lambda: service.said("auth.session.revoked.v1", grant["session_id"]))
    assert len(service.said("auth.session.revoked.v1", grant["session_id"])) == 1
    actions = service.rows("SELECT action FROM audit_entries WHERE target = %s ORDER BY number", grant["session_id"])
    assert [action for (action,) in actions] == ["session.opened", "session.token_reused"]


@pytest.mark.parametrize("token", ["", "nonsense", "x" * 43, "a\0b", "é"])
async def test_a_refresh_token_that_never_was_is_refused(service: Service, token: str) -> None:
    answer = await service.refresh(token)
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/bad-refresh-token")


async def test_an_old_session_cannot_be_refreshed(service: Service) -> None:
    grant = await service.session(await service.person())
    await service.change("UPDATE sessions SET expires_at = now() WHERE id = %s", grant["session_id"])
    assert (await service.refresh(grant["refresh_token"])).status_code == 401


async def test_logging_out_ends_the_session_once(service: Service, eventually: Eventually) -> None:
    person, stranger = await service.person(), await service.person()
    grant = await service.session(person)

    async def log_out(user_id: str, session_id: str = grant["session_id"]) -> int:
        body = {"session_id": session_id, "user_id": user_id}
        return (await service.http.post("/internal/logout", json=body, headers=service.gateway)).status_code

    assert await log_out(stranger.id) == 204
    assert (await service.refresh(grant["refresh_token"])).status_code == 200
    for _ in range(2):
        assert await log_out(person.id) == 204
    assert await log_out(person.id, f"key:{uuid4()}") == 204
    assert await log_out(person.id, str(uuid4())) == 204
    for bad in ("", "service:gateway", "nonsense", "key:", "' OR 1=1"):
        assert await log_out(person.id, bad) == 422, bad
    assert await log_out("not an id") == 422
    await eventually(lambda: service.said("auth.session.revoked.v1", grant["session_id"]))
    listed = (await service.http.get("/internal/revocations", headers=service.gateway)).json()["items"]
    assert [one["scope"] for one in listed if one["id"] == grant["session_id"]] == ["session"]


@pytest.mark.parametrize("sort", [None, "last_used_at", "-last_used_at"])
async def test_sessions_are_listed_page_by_page_the_newest_first(service: Service, sort: str | None) -> None:
    person = await service.person()
    opened = [(await service.session(person))["session_id"] for _ in range(5)]
    asked = {"limit": "2"} if sort is None else {"limit": "2", "sort": sort}
    listed: list[str] = []
    while True:
        answer = await service.http.get("/api/v1/sessions", params=asked, headers=person.headers)
        listed += [one["id"] for one in answer.json()["items"]]
        if (cursor := answer.json()["next_cursor"]) is None:
            break
        assert answer.links["next"]["url"].startswith("/api/v1/sessions?")
        asked["cursor"] = cursor
    assert listed == (opened if sort == "last_used_at" else opened[::-1])


async def test_sessions_are_listed_and_ended_by_their_owner_or_an_administrator(service: Service) -> None:
    person, stranger = await service.person(), await service.person()
    first, second = await service.session(person), await service.session(person)
    claims = service.issuer.claims(person.id) | {"sid": first["session_id"]}
    own = {"authorization": f"Bearer {service.issuer.sign(claims)}"}
    items = (await service.http.get("/api/v1/sessions", headers=own)).json()["items"]
    assert {one["id"]: one["current"] for one in items} == {first["session_id"]: True, second["session_id"]: False}
    assert {one["address"] for one in items} == {"198.51.100.7"}
    path = f"/api/v1/sessions/{second['session_id']}"
    foreign = await service.http.delete(path, headers=stranger.headers)
    missing = await service.http.delete(f"/api/v1/sessions/{uuid4()}", headers=stranger.headers)
    assert (foreign.status_code, missing.status_code) == (404, 404)
    assert foreign.json()["title"] == missing.json()["title"]
    assert (await service.http.delete(path, headers=own)).status_code == 204
    assert (await service.http.delete(path, headers=own)).status_code == 404
    assert (await service.refresh(second["refresh_token"])).status_code == 401
    third = await service.session(person)
    by_admin = await service.http.delete(f"/api/v1/sessions/{third['session_id']}", headers=service.admin)
    assert by_admin.status_code == 204
    assert (await service.http.delete("/api/v1/sessions/nonsense", headers=own)).status_code == 422


async def test_nobody_but_services_reaches_the_internal_routes(service: Service) -> None:
    person = await service.person()
    calls = [
        ("POST", "/internal/login"),
        ("POST", "/internal/refresh"),
        ("POST", "/internal/logout"),
        ("POST", "/internal/api-keys/exchange"),
        ("GET", "/internal/revocations"),
        ("GET", "/internal/users?userid=x"),
        ("GET", "/internal/accounts"),
    ]
    for method, path in calls:
        for headers, status in (({}, 401), (person.headers, 403), (service.admin, 403)):
            answer = await service.http.request(method, path, json={}, headers=headers)
            assert answer.status_code == status, (method, path)


async def test_a_service_is_no_person(service: Service) -> None:
    for path in ("/api/v1/users/me", "/api/v1/api-keys", "/api/v1/sessions", "/api/v1/users/", "/api/v1/audit"):
        answer = await service.http.get(path, headers=service.gateway)
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden"), path
