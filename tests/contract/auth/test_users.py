import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from libs.common.bus import LocalBus
from libs.common.events import Event
from libs.common.testing.identity import TestIssuer
from services.auth.main import create_app, migrate
from tests.contract.auth.harness import PASSWORD, Service, running, settings

Eventually = Callable[..., Awaitable[None]]


async def test_an_administrator_makes_a_user_who_is_announced(service: Service, eventually: Eventually) -> None:
    body = {"email": "Ada@Example.org", "username": "Ada Lovelace", "password": PASSWORD}
    answer = await service.http.post("/api/v1/users/", json=body, headers=service.admin)
    assert answer.status_code == 201
    shown = answer.json()
    assert answer.headers["location"] == f"/api/v1/users/{shown['id']}"
    assert answer.headers["etag"] == '"1"'
    assert (shown["role"], shown["is_superuser"], shown["disabled"]) == ("CLIENT", False, False)
    assert shown["quota"] == service.settings.client_quota
    assert "password" not in answer.text
    await eventually(lambda: service.said("auth.user.created.v1", shown["id"]))
    said = service.said("auth.user.created.v1", shown["id"])[0]
    assert (said.owner, said.sequence, said.data["quota"]) == (shown["id"], 1, shown["quota"])
    assert "hash" not in said.to_json().decode()


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"email": "not an e-mail"}, "/body/email"),
        ({"username": ""}, "/body/username"),
        ({"username": "   "}, "/body/username"),
        ({"username": "x" * 65}, "/body/username"),
        ({"username": "<script>"}, "/body/username"),
        ({"username": "a\nb"}, "/body/username"),
        ({"username": "a\0b"}, "/body/username"),
        ({"username": 7}, "/body/username"),
        ({"password": ""}, "/body/password"),
        ({"password": None}, "/body/password"),
        ({"password": "x" * 4097}, "/body/password"),
        ({"role": "SERVICE"}, "/body/role"),
        ({"role": "ROOT"}, "/body/role"),
    ],
)
async def test_a_user_with_a_bad_field_is_refused_by_its_pointer(
    service: Service, fields: dict[str, Any], pointer: str
) -> None:
    body = {"email": "bad@example.org", "username": "bad", "password": PASSWORD} | fields
    answer = await service.http.post("/api/v1/users/", json=body, headers=service.admin)
    assert answer.status_code == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize("password", ["short", " " * 20, "x" * 1025, "é" * 513])
async def test_a_password_that_cannot_be_used_is_a_4xx(service: Service, password: str) -> None:
    body = {"email": "long@example.org", "username": "long", "password": password}
    answer = await service.http.post("/api/v1/users/", json=body, headers=service.admin)
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/password-refused"


async def test_a_password_of_1024_bytes_works_to_its_last_byte(service: Service) -> None:
    person = await service.person(password="é" * 512)
    assert (await service.login(person.username, "é" * 512)).status_code == 200
    assert (await service.login(person.username, "é" * 511 + "e")).status_code == 401


async def test_names_and_e_mails_are_taken_whatever_their_case_and_as_each_other(service: Service) -> None:
    person = await service.person()
    for fields in (
        {"username": person.username.upper()},
        {"email": person.email.upper()},
        {"username": person.email},
    ):
        body = {"email": "fresh@example.org", "username": "fresh", "password": PASSWORD} | fields
        answer = await service.http.post("/api/v1/users/", json=body, headers=service.admin)
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/user-exists"), fields


async def test_nobody_renames_themselves_to_what_another_logs_in_by(service: Service) -> None:
    victim, thief = await service.person(), await service.person()
    for change in ({"username": victim.email}, {"username": victim.username}, {"email": victim.email.upper()}):
        answer = await service.http.patch("/api/v1/users/me", json=change, headers=thief.headers)
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/user-exists"), change
    assert (await service.session(victim))["user"]["id"] == victim.id
    same = await service.http.patch("/api/v1/users/me", json={"username": thief.username}, headers=thief.headers)
    assert same.status_code == 200


async def test_equal_registrations_at_once_make_one_user(service: Service) -> None:
    body = {"email": "race@example.org", "username": "race", "password": PASSWORD}
    answers = await asyncio.gather(
        *(service.http.post("/api/v1/users/", json=body, headers=service.admin) for _ in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7


async def test_a_username_and_an_email_that_are_alike_are_not_given_to_two_users_at_once(service: Service) -> None:
    names = [f"taken-{number}@example.org" for number in range(8)]
    asked = [
        {"email": email, "username": username, "password": PASSWORD}
        for name in names
        for email, username in ((name, f"of {name}"), (f"of-{name}", name))
    ]
    await asyncio.gather(*(service.http.post("/api/v1/users/", json=one, headers=service.admin) for one in asked))
    both = "SELECT count(*) FROM users WHERE username_key = %s OR email_key = %s"
    assert [service.rows(both, name, name)[0][0] for name in names] == [1] * len(names)


async def test_registration_is_closed_unless_it_is_opened(service: Service) -> None:
    body = {"email": "walkin@example.org", "username": "walkin", "password": PASSWORD}
    person = await service.person()
    for headers in ({}, person.headers):
        answer = await service.http.post("/api/v1/users/", json=body, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/registration-closed")


async def test_open_registration_makes_clients_only(service: Service, tmp_path: Any) -> None:
    async with running(service.settings.database_url, tmp_path, open_registration=True) as opened:
        body = {"email": "open@example.org", "username": "open", "password": PASSWORD}
        for role in ("ADMIN", "SERVICE"):
            refused = await opened.http.post("/api/v1/users/", json={**body, "role": role})
            assert refused.status_code in (403, 422)
        made = await opened.http.post("/api/v1/users/", json=body)
        assert (made.status_code, made.json()["role"]) == (201, "CLIENT")
        bad = await opened.http.post("/api/v1/users/", json=body, headers={"authorization": "Bearer nonsense"})
        assert bad.status_code == 401


async def test_users_are_listed_searched_sorted_and_paged(service: Service) -> None:
    marked = [(await service.person(username=f"paged-{letter}")).id for letter in "cab"]
    seen: list[str] = []
    query: dict[str, Any] = {"search": "PAGED-", "sort": "-username", "limit": 2}
    while True:
        answer = await service.http.get("/api/v1/users/", params=query, headers=service.admin)
        assert answer.status_code == 200
        document = answer.json()
        seen += [user["username"] for user in document["items"]]
        if document["next_cursor"] is None:
            break
        assert 'rel="next"' in answer.headers["link"]
        query["cursor"] = document["next_cursor"]
    assert seen == ["paged-c", "paged-b", "paged-a"]
    answer = await service.http.get("/api/v1/users/", params={"role": "ADMIN"}, headers=service.admin)
    assert not {user["id"] for user in answer.json()["items"]} & set(marked)
    wildcard = await service.http.get("/api/v1/users/", params={"search": "paged%"}, headers=service.admin)
    assert wildcard.json()["items"] == []


async def test_one_user_is_shown_changed_and_deleted(service: Service, eventually: Eventually) -> None:
    person = await service.person()
    path = f"/api/v1/users/{person.id}"
    shown = await service.http.get(path, headers=service.admin)
    assert shown.json() == person.shown
    changed = await service.http.patch(path, json={"email": "new-" + person.email}, headers=service.admin)
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    stale = await service.http.delete(path, headers={**service.admin, "if-match": '"1"'})
    assert stale.status_code == 412
    gone = await service.http.delete(path, headers={**service.admin, "if-match": '"2"'})
    assert gone.status_code == 204
    assert (await service.http.get(path, headers=service.admin)).status_code == 404
    assert (await service.http.delete(path, headers=service.admin)).status_code == 404
    assert (await service.login(person.username)).status_code == 401
    assert (await service.http.get("/api/v1/users/me", headers=person.headers)).status_code in (401, 404)
    await eventually(lambda: service.said("auth.user.deleted.v1", person.id))
    said = service.said("auth.user.deleted.v1", person.id)[0]
    assert said.data["revokes"][0]["id"] == person.id
    assert said.sequence == 3


async def test_a_change_of_nothing_announces_nothing(service: Service) -> None:
    person = await service.person()
    same = {"username": person.username, "quota": person.shown["quota"]}
    for change in ({}, same):
        answer = await service.http.patch(f"/api/v1/users/{person.id}", json=change, headers=service.admin)
        assert (answer.status_code, answer.headers["etag"]) == (200, '"1"')


@pytest.mark.parametrize(
    ("quota", "status"),
    [({"vms": 3}, 200), ({"vms": -1}, 200), ({"vms": -2}, 422), ({"planets": 1}, 422), ({"vms": "many"}, 422)],
)
async def test_quotas_are_changed_one_by_one(
    service: Service, eventually: Eventually, quota: dict[str, Any], status: int
) -> None:
    person = await service.person()
    answer = await service.http.patch(f"/api/v1/users/{person.id}", json={"quota": quota}, headers=service.admin)
    assert answer.status_code == status
    if status == 200:
        wanted = {**service.settings.client_quota, **quota}
        assert answer.json()["quota"] == wanted
        await eventually(lambda: service.said("auth.quota.changed.v1", person.id))
        said = service.said("auth.quota.changed.v1", person.id)[0]
        assert said.data["quota"] == wanted
        assert (said.sequence, said.data["revokes"]) == (2, [])


@pytest.mark.parametrize("change", [{"role": "ADMIN"}, {"disabled": True}])
async def test_what_changes_ones_rights_ends_every_session_and_token(
    service: Service, eventually: Eventually, change: dict[str, Any]
) -> None:
    person = await service.person()
    grant = await service.session(person)
    answer = await service.http.patch(f"/api/v1/users/{person.id}", json=change, headers=service.admin)
    assert answer.status_code == 200
    refused = await service.refresh(grant["refresh_token"])
    assert refused.status_code == 401
    await eventually(lambda: [one for one in service.heard if one.subject == person.id and one.data.get("revokes")])

    async def refused_here() -> bool:
        return (await service.http.get("/api/v1/users/me", headers=person.headers)).status_code == 401

    await eventually(refused_here)
    revocations = (await service.http.get("/internal/revocations", headers=service.gateway)).json()["items"]
    assert [one["scope"] for one in revocations if one["id"] == person.id] == ["user"]


async def test_a_disabled_user_learns_so_only_with_the_right_password(service: Service) -> None:
    person = await service.person()
    await service.http.patch(f"/api/v1/users/{person.id}", json={"disabled": True}, headers=service.admin)
    assert (await service.login(person.username)).json()["type"] == "/problems/account-disabled"
    assert (await service.login(person.username, "wrong one")).json()["type"] == "/problems/bad-credentials"


async def test_ones_own_account_is_shown_and_changed_but_not_its_rights(service: Service) -> None:
    person = await service.person()
    me = await service.http.get("/api/v1/users/me", headers=person.headers)
    assert me.json() == person.shown
    renamed = await service.http.patch(
        "/api/v1/users/me", json={"username": person.username + "-x"}, headers={**person.headers, "if-match": '"1"'}
    )
    assert renamed.json()["username"] == person.username + "-x"
    for grab in ({"role": "ADMIN"}, {"disabled": False}, {"quota": {"vms": 99}}, {"is_superuser": True}, {"id": "x"}):
        answer = await service.http.patch("/api/v1/users/me", json=grab, headers=person.headers)
        assert answer.status_code == 422, grab
    after = (await service.http.get("/api/v1/users/me", headers=person.headers)).json()
    assert (after["role"], after["quota"]) == ("CLIENT", person.shown["quota"])


async def test_changing_the_password_needs_the_current_one(service: Service) -> None:
    person = await service.person()
    path, fresh = "/api/v1/users/me/password", "another good password"

    async def change(current: str, new: str) -> httpx.Response:
        body = {"current_password": current, "new_password": new}
        return await service.http.post(path, json=body, headers=person.headers)

    assert (await change("not the current one", fresh)).json()["type"] == "/problems/bad-credentials"
    assert (await change(PASSWORD, "short")).status_code == 422
    assert (await change(PASSWORD, "x" * 1025)).status_code == 422
    assert (await service.login(person.username)).status_code == 200
    assert (await change(PASSWORD, fresh)).status_code == 204
    assert (await service.login(person.username)).status_code == 401
    assert (await service.login(person.username, fresh)).status_code == 200


async def test_an_administrator_gives_a_new_password_to_who_has_none_or_forgot_it(service: Service) -> None:
    form = {"userid": "Ext-forgot", "username": "ext forgot"}
    made = await service.http.post("/users", data=form, headers=service.admin)
    path, body = f"/api/v1/users/{made.json()['id']}", {"password": "given by an administrator"}
    assert (await service.http.patch(path, json=body, headers=service.admin)).status_code == 200
    grant = (await service.login("ext forgot", body["password"])).json()
    assert (await service.http.patch(path, json={"password": "short"}, headers=service.admin)).status_code == 422
    assert (await service.http.patch(path, json={"password": PASSWORD}, headers=service.admin)).status_code == 200
    assert (await service.refresh(grant["refresh_token"])).status_code == 401
    assert (await service.login("ext forgot", body["password"])).status_code == 401
    assert (await service.login("ext forgot")).status_code == 200
    [last] = service.rows("SELECT detail FROM audit_entries WHERE action = 'user.updated' ORDER BY number DESC LIMIT 1")
    assert last == ({"changed": ["password"]},)
    own = service.issuer.headers(made.json()["id"])
    assert (await service.http.patch("/api/v1/users/me", json=body, headers=own)).status_code == 422


async def test_an_older_client_makes_and_reads_users_by_userid(service: Service) -> None:
    made = await service.http.post("/users", data={"userid": "Ext-7", "username": "ext seven"}, headers=service.admin)
    assert (made.status_code, made.json()["userid"]) == (201, "Ext-7")
    user_id = made.json()["id"]
    again = await service.http.post("/users", data={"userid": "Ext-7", "username": "other"}, headers=service.admin)
    assert again.status_code == 409
    own = await service.http.get("/users/Ext-7", headers=service.issuer.headers(user_id))
    assert own.json()["vms"] == []
    assert (await service.login("ext seven", "")).status_code == 422
    assert (await service.login("ext seven", "anything")).status_code == 401
    stranger = await service.person()
    foreign = await service.http.get("/users/Ext-7", headers=stranger.headers)
    missing = await service.http.get("/users/Ext-8", headers=stranger.headers)
    assert (foreign.status_code, missing.status_code) == (404, 404)
    assert foreign.json()["detail"].replace("Ext-7", "") == missing.json()["detail"].replace("Ext-8", "")
    assert (await service.http.post("/users", data={"userid": "a"}, headers=service.admin)).status_code == 422
    denied = await service.http.post("/users", data={"userid": "a", "username": "b"}, headers=stranger.headers)
    assert denied.status_code == 403


async def test_the_first_start_makes_one_administrator_and_keeps_what_it_is_given(service: Service) -> None:
    assert len(service.rows("SELECT 1 FROM users WHERE username = 'admin'")) == 1
    chosen = settings("postgresql://nowhere/none", service.settings.common.data_dir)
    assert chosen.admin_password is not None
    assert chosen.admin_password.get_secret_value() not in repr(chosen)


async def test_replicas_that_start_together_make_one_administrator(new_database_url: str, tmp_path: Path) -> None:
    chosen = settings(new_database_url, tmp_path, api_key="an-older-clients-key-0123456789")
    await migrate(chosen)
    apps = [create_app(chosen, bus=LocalBus(), verifier=TestIssuer().verifier()) for _ in range(4)]
    async with contextlib.AsyncExitStack() as running:
        await asyncio.gather(*(running.enter_async_context(app.router.lifespan_context(app)) for app in apps))
    with psycopg.connect(new_database_url) as connection:
        [(digest,)] = connection.execute("SELECT password_hash FROM users WHERE is_superuser").fetchall()
    assert digest.startswith("$argon2id$v=19$m=65536,t=3,p=4$")  # what an app makes by itself, outside these tests


async def test_services_are_told_who_exists_by_every_name_that_older_clients_use(service: Service) -> None:
    person = await service.person()
    made = await service.http.post("/users", data={"userid": "Ext-9", "username": "ext nine"}, headers=service.admin)
    assert made.status_code in (200, 201)

    async def exists(userid: str) -> bool:
        answer = await service.http.get("/internal/users", params={"userid": userid}, headers=service.gateway)
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["exists"])

    assert [await exists(name) for name in (person.id, person.username, "Ext-9", "ext nine")] == [True] * 4
    assert [await exists(name) for name in ("nobody", "ext-9", "018f0000-0000-7000-8000-000000000001")] == [False] * 3


async def test_services_read_all_accounts_as_the_events_that_tell_of_them(service: Service) -> None:
    people = [await service.person() for _ in range(3)]
    found: list[Event] = []
    while True:
        where = {"after": found[-1].subject} if found else {}
        answer = await service.http.get("/internal/accounts", params=where, headers=service.gateway)
        page = [Event.from_json(account.encode()) for account in answer.json()["items"]]
        if not page:
            break
        found += page
    assert [one.subject for one in found] == sorted(one.subject for one in found)
    states = {one.subject: one for one in found}
    for person in people:
        told = states[person.id]
        assert (told.type, told.source, told.data["username"]) == (
            "auth.user.updated.v1",
            "/telar/auth",
            person.username,
        )
        assert told.sequence >= 1
        assert told.data["quota"]["vms"] >= 0
