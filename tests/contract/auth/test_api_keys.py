import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.auth.domain import key_digest
from tests.contract.auth.harness import Service, told

Eventually = Callable[..., Awaitable[None]]


def _in(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


async def test_a_key_is_shown_once_and_only_its_digest_is_kept(service: Service) -> None:
    person = await service.person()
    answer = await service.http.post("/api/v1/api-keys", json={"name": "laptop"}, headers=person.headers)
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert re.fullmatch(r"tlr_[A-Za-z0-9]{8}_[A-Za-z0-9]{49}", made["key"])
    assert made["scopes"] == ["account", "fetch", "images", "stacks", "vms"]
    [(row,)] = service.rows("SELECT to_jsonb(api_keys) FROM api_keys WHERE id = %s", made["id"])
    assert row["digest"] == key_digest(made["key"])
    assert made["key"] not in str(row)
    assert made["key"].split("_")[2] not in str(row)
    listed = await service.http.get("/api/v1/api-keys", headers=person.headers)
    assert [one["id"] for one in listed.json()["items"]] == [made["id"]]
    assert "key" not in listed.json()["items"][0]
    granted = await service.exchange(made["key"])
    assert granted.json()["session_id"] == f"key:{made['id']}"
    assert granted.json()["refresh_token"] is None
    used = (await service.http.get("/api/v1/api-keys", headers=person.headers)).json()["items"][0]
    assert used["last_used"] == used["last_used_at"] is not None


async def test_a_keys_text_is_kept_nowhere_even_with_an_idempotency_key(service: Service) -> None:
    person = await service.person()
    headers = {**person.headers, "idempotency-key": str(uuid4())}
    first = await service.http.post("/api/v1/api-keys", json={"name": "once"}, headers=headers)
    again = await service.http.post("/api/v1/api-keys", json={"name": "once"}, headers=headers)
    assert first.status_code == 201
    assert (again.status_code, again.json()["type"]) == (409, "/problems/idempotency-answer-lost")
    assert len((await service.http.get("/api/v1/api-keys", headers=person.headers)).json()["items"]) == 1
    kept = service.rows("SELECT convert_from(body, 'UTF8') FROM idempotency_keys")
    assert kept
    assert first.json()["key"] not in str(kept)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "   "},
        {"name": "x" * 101},
        {"name": "a\0b"},
        {"name": "k", "scopes": []},
        {"name": "k", "scopes": ["everything"]},
        {"name": "k", "scopes": ["vms:write"]},
        {"name": "k", "scopes": ["*:read"]},
        {"name": "k", "scopes": ["vms"] * 21},
        {"name": "k", "scopes": "vms"},
        {"name": "k", "expires_at": "tomorrow"},
        {"name": "k", "expires_at": "2099-01-01T00:00:00"},
        {"name": "k", "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "k", "cidrs": ["10.0.0.1/8"]},
        {"name": "k", "cidrs": ["localhost"]},
        {"name": "k", "cidrs": ["10.0.0.0/33"]},
        {"name": "k", "key": "tlr_mine_mine"},
        {"name": "k", "user_id": "0192f0a0-0000-7000-8000-000000000009"},
    ],
    ids=str,
)
async def test_a_key_that_makes_no_sense_is_a_422(service: Service, body: dict[str, Any]) -> None:
    person = await service.person()
    answer = await service.http.post("/api/v1/api-keys", json=body, headers=person.headers)
    assert answer.status_code == 422


async def test_a_key_with_any_character_changed_is_refused(service: Service) -> None:
    person = await service.person()
    key = (await service.key(person.headers))["key"]
    changed = {key[:at] + ("A" if key[at] != "A" else "B") + key[at + 1 :] for at in range(len(key))}
    for text in [*changed, key[:-1], key + "A", key.upper(), key.lower(), "", "tlr__", "tlr_", "' OR 1=1", "a\0b", "é"]:
        answer = await service.exchange(text)
        assert (answer.status_code, answer.json()["type"]) == (401, "/problems/bad-api-key"), text
    assert (await service.exchange(key)).status_code == 200


async def test_all_the_ways_a_key_can_be_wrong_answer_alike(service: Service) -> None:
    person, disabled = await service.person(), await service.person()
    ended = await service.key(person.headers)
    await service.change("UPDATE api_keys SET expires_at = now() WHERE id = %s", ended["id"])
    bound = await service.key(person.headers, cidrs=["10.0.0.0/8"])
    deleted = await service.key(person.headers)
    await service.http.delete(f"/api/v1/api-keys/{deleted['id']}", headers=person.headers)
    orphan = await service.key(disabled.headers)
    await service.http.patch(f"/api/v1/users/{disabled.id}", json={"disabled": True}, headers=service.admin)
    texts = [one["key"] for one in (ended, bound, deleted, orphan)] + [ended["key"][:-1] + "!"]
    answers = [await service.exchange(text) for text in texts]
    assert {answer.status_code for answer in answers} == {401}
    assert all(told(answer) == told(answers[0]) for answer in answers)


@pytest.mark.parametrize(
    ("cidr", "address", "status"),
    [
        ("192.0.2.0/24", "192.0.2.255", 200),
        ("192.0.2.0/24", "192.0.3.0", 401),
        ("192.0.2.0/24", "::ffff:192.0.2.1", 200),
        ("192.0.2.0/24", "::ffff:192.0.3.1", 401),
        ("2001:db8::/32", "2001:db8:ffff::1", 200),
        ("2001:db8::/32", "2001:db9::1", 401),
        ("192.0.2.0/24", "-", 401),
        ("192.0.2.0/24", "", 401),
        ("0.0.0.0/0", "2001:db8::1", 401),
    ],
)
async def test_a_key_bound_to_networks_works_from_there_alone(
    service: Service, cidr: str, address: str, status: int
) -> None:
    key = await service.key((await service.person()).headers, cidrs=[cidr])
    assert (await service.exchange(key["key"], address=address)).status_code == status


async def test_a_key_ends_with_its_time(service: Service) -> None:
    person = await service.person()
    key = await service.key(person.headers, expires_at=_in(hours=1))
    granted = await service.exchange(key["key"])
    assert granted.status_code == 200
    assert granted.json()["expires_at"] is not None
    await service.change("UPDATE api_keys SET expires_at = now() WHERE id = %s", key["id"])
    assert (await service.exchange(key["key"])).status_code == 401


@pytest.mark.parametrize(
    ("parent", "child", "allowed"),
    [
        ({"scopes": ["account", "vms"]}, {"scopes": ["vms"]}, True),
        ({"scopes": ["account", "vms"]}, {"scopes": ["vms:read"]}, True),
        ({"scopes": ["account", "vms"]}, {"scopes": ["images"]}, False),
        ({"scopes": ["account", "vms:read"]}, {"scopes": ["vms"]}, False),
        ({"scopes": ["account", "vms"]}, {"scopes": ["read"]}, False),
        ({"scopes": ["account", "vms"]}, {"scopes": ["admin"]}, False),
        ({"scopes": ["account", "read"]}, {"scopes": ["read"]}, True),
        ({"scopes": ["account", "read"]}, {"scopes": ["images:read"]}, True),
        ({"scopes": ["account"], "expires_at": _in(hours=1)}, {"scopes": ["account"]}, False),
        (
            {"scopes": ["account"], "expires_at": _in(hours=1)},
            {"scopes": ["account"], "expires_at": _in(hours=2)},
            False,
        ),
        (
            {"scopes": ["account"], "expires_at": _in(hours=2)},
            {"scopes": ["account"], "expires_at": _in(hours=1)},
            True,
        ),
        ({"scopes": ["account"], "cidrs": ["10.0.0.0/8"]}, {"scopes": ["account"]}, False),
        ({"scopes": ["account"], "cidrs": ["10.0.0.0/8"]}, {"scopes": ["account"], "cidrs": ["0.0.0.0/0"]}, False),
        ({"scopes": ["account"], "cidrs": ["10.0.0.0/8"]}, {"scopes": ["account"], "cidrs": ["10.1.0.0/16"]}, True),
        (
            {"scopes": ["account"], "cidrs": ["10.0.0.0/8"]},
            {"scopes": ["account"], "cidrs": ["10.1.0.0/16", "192.0.2.0/24"]},
            False,
        ),
        ({"scopes": ["account"], "cidrs": ["10.0.0.0/8"]}, {"scopes": ["account"], "cidrs": ["2001:db8::/32"]}, False),
    ],
)
async def test_a_key_made_by_a_key_is_never_wider(
    service: Service, parent: dict[str, Any], child: dict[str, Any], allowed: bool
) -> None:
    person = await service.person(role="ADMIN")
    made = await service.key(person.headers, **parent)
    answer = await service.http.post(
        "/api/v1/api-keys", json={"name": "child", **child}, headers=service.as_key(person, made)
    )
    assert answer.status_code == (201 if allowed else 403), answer.text
    if not allowed:
        assert answer.json()["type"] == "/problems/wider-key"


async def test_all_scopes_asked_for_by_a_key_are_no_more_than_its_own(service: Service) -> None:
    person = await service.person(role="ADMIN")
    parent = await service.key(person.headers, scopes=["account", "vms:read"])
    child = await service.key(service.as_key(person, parent), scopes=["*"])
    assert child["scopes"] == ["account", "vms:read"]


async def test_who_holds_all_areas_may_have_a_key_that_reads_them_all(service: Service) -> None:
    person = await service.person()
    reads = await service.key(person.headers, scopes=["read"])
    assert (await service.key(person.headers, scopes=["read", "vms"]))["scopes"] == ["read", "vms"]
    assert (await service.http.get("/api/v1/users/me", headers=service.as_key(person, reads))).status_code == 200
    narrow = await service.key(person.headers, scopes=["account", "vms"])
    answer = await service.http.post(
        "/api/v1/api-keys", json={"name": "k", "scopes": ["read"]}, headers=service.as_key(person, narrow)
    )
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/wider-key")


async def test_a_keys_end_beyond_the_last_year_is_refused_and_the_list_stays_readable(service: Service) -> None:
    person = await service.person()
    for end, status in (("9999-12-31T23:59:59-12:00", 422), ("9999-12-31T23:59:59+12:00", 201)):
        body = {"name": "key", "expires_at": end}
        assert (await service.http.post("/api/v1/api-keys", json=body, headers=person.headers)).status_code == status
    listed = await service.http.get("/api/v1/api-keys", headers=person.headers)
    assert [one["expires_at"] for one in listed.json()["items"]] == ["9999-12-31T11:59:59Z"]


async def test_of_equal_deletions_at_once_one_deletes_the_key(service: Service) -> None:
    person = await service.person()
    path = f"/api/v1/api-keys/{(await service.key(person.headers))['id']}"
    answers = await asyncio.gather(*(service.http.delete(path, headers=person.headers) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [204, *[404] * 5]


async def test_a_clients_key_never_administers(service: Service) -> None:
    person = await service.person()
    answer = await service.http.post(
        "/api/v1/api-keys", json={"name": "k", "scopes": ["admin"]}, headers=person.headers
    )
    assert answer.status_code == 403
    forged = {"scopes": ["*"], "id": str(uuid4())}
    assert (await service.http.get("/api/v1/users/", headers=service.as_key(person, forged))).status_code == 403


async def test_an_administrators_key_without_the_scope_does_not_administer(service: Service) -> None:
    person = await service.person(role="ADMIN")
    narrow = await service.key(person.headers, scopes=["account"])
    for path in ("/api/v1/users/", "/api/v1/audit", "/api/v1/dead-letters", f"/api/v1/users/{person.id}"):
        answer = await service.http.get(path, headers=service.as_key(person, narrow))
        assert answer.status_code == 403, path
    full = await service.key(person.headers, scopes=["account", "admin"])
    assert (await service.http.get("/api/v1/users/", headers=service.as_key(person, full))).status_code == 200


async def test_a_key_that_was_just_deleted_makes_no_other(service: Service) -> None:
    person = await service.person()
    parent = await service.key(person.headers, scopes=["account"], cidrs=["10.0.0.0/8"])
    await service.change("DELETE FROM api_keys WHERE id = %s", parent["id"])
    answer = await service.http.post("/api/v1/api-keys", json={"name": "k"}, headers=service.as_key(person, parent))
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/bad-api-key")


async def test_a_user_who_was_just_deleted_makes_no_key(service: Service) -> None:
    ghost = service.issuer.headers(str(uuid4()), scopes=("account",))
    answer = await service.http.post("/api/v1/api-keys", json={"name": "k", "scopes": ["account"]}, headers=ghost)
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/user-not-found")


async def test_scopes_are_asked_of_every_area(service: Service) -> None:
    person = await service.person()
    reader = service.as_key(person, await service.key(person.headers, scopes=["account:read"]))
    vms = service.as_key(person, await service.key(person.headers, scopes=["vms"]))
    assert (await service.http.get("/api/v1/users/me", headers=reader)).status_code == 200
    assert (await service.http.patch("/api/v1/users/me", json={}, headers=reader)).status_code == 403
    assert (await service.http.get("/api/v1/users/me", headers=vms)).status_code == 403
    assert (await service.http.get("/users/x", headers=vms)).status_code == 403
    body = {"email": "x@example.org", "username": "x", "password": "long enough"}
    assert (await service.http.post("/api/v1/users/", json=body, headers=vms)).status_code == 403


async def test_a_key_is_deleted_by_its_owner_or_an_administrator(service: Service, eventually: Eventually) -> None:
    person, stranger = await service.person(), await service.person()
    keys = [await service.key(person.headers) for _ in range(2)]
    path = f"/api/v1/api-keys/{keys[0]['id']}"
    foreign = await service.http.delete(path, headers=stranger.headers)
    missing = await service.http.delete(f"/api/v1/api-keys/{uuid4()}", headers=stranger.headers)
    assert (foreign.status_code, missing.status_code) == (404, 404)
    assert foreign.json()["title"] == missing.json()["title"]
    assert (await service.http.get("/api/v1/api-keys", headers=stranger.headers)).json()["items"] == []
    assert (await service.http.delete(path, headers=person.headers)).status_code == 204
    assert (await service.exchange(keys[0]["key"])).status_code == 401
    by_admin = await service.http.delete(f"/api/v1/api-keys/{keys[1]['id']}", headers=service.admin)
    assert by_admin.status_code == 204
    await eventually(lambda: service.said("auth.api_key.revoked.v1", keys[0]["id"]))
    revoked = service.said("auth.api_key.revoked.v1", keys[0]["id"])[0].data["revokes"]
    assert [one["id"] for one in revoked] == [f"key:{keys[0]['id']}"]
    refused = await service.http.get("/api/v1/users/me", headers=service.as_key(person, keys[0]))
    assert refused.status_code == 401
