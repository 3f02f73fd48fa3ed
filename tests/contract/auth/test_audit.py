import asyncio
import json
from typing import Any

import pytest

from tests.contract.auth.harness import PASSWORD, Service

TAMPERING = {
    "at": "at + interval '1 microsecond'",
    "actor_id": "coalesce(actor_id, '') || 'x'",
    "actor": "actor || 'x'",
    "action": "'user.deleted'",
    "target": "target || ' '",
    "address": "'203.0.113.1'",
    "detail": """detail || '{"more": 1}'::jsonb""",
    "hash": "md5(hash) || md5(hash)",
    "number": "number + 1000000",
}


async def _verified(service: Service) -> dict[str, Any]:
    answer = await service.http.get("/api/v1/audit/verify", headers=service.admin)
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


async def test_entries_tell_who_did_what_to_whom_from_where(service: Service) -> None:
    person = await service.person()
    headers = {**service.admin, "x-forwarded-for": "203.0.113.9"}
    await service.http.patch(f"/api/v1/users/{person.id}", json={"quota": {"vms": 1}}, headers=headers)
    answer = await service.http.get("/api/v1/audit", params={"target": person.id}, headers=service.admin)
    newest, oldest = answer.json()["items"]
    assert (newest["action"], newest["address"]) == ("user.updated", "203.0.113.9")
    assert newest["detail"] == {"changed": ["quota"]}
    assert oldest["action"] == "user.created"
    assert newest["number"] > oldest["number"]
    for query in ({"action": "user.updated", "target": person.id}, {"actor_id": newest["actor_id"], "limit": 1}):
        found = (await service.http.get("/api/v1/audit", params=query, headers=service.admin)).json()["items"]
        assert [one["number"] for one in found] == [newest["number"]]
    assert PASSWORD not in answer.text


async def test_an_account_made_by_an_older_client_tells_from_where(service: Service) -> None:
    headers = {**service.admin, "x-forwarded-for": "203.0.113.9"}
    form = {"userid": "audited", "username": "audited"}
    made = await service.http.post("/users", data=form, headers=headers)
    query = {"target": made.json()["id"]}
    [entry] = (await service.http.get("/api/v1/audit", params=query, headers=service.admin)).json()["items"]
    assert (entry["action"], entry["address"]) == ("user.created", "203.0.113.9")


async def test_the_log_is_paged_newest_first_without_gap_or_double(service: Service) -> None:
    for _ in range(3):
        await service.person()
    numbers: list[int] = []
    query: dict[str, Any] = {"limit": 2}
    while query.get("cursor", "") is not None:
        page = (await service.http.get("/api/v1/audit", params=query, headers=service.admin)).json()
        numbers += [one["number"] for one in page["items"]]
        query["cursor"] = page["next_cursor"]
    assert numbers == list(range(numbers[0], 0, -1))


async def test_nothing_that_happens_at_once_breaks_the_chain(service: Service) -> None:
    person = await service.person()
    before = await _verified(service)
    path = f"/api/v1/users/{person.id}"
    jobs = [service.http.patch(path, json={"quota": {"vms": n}}, headers=service.admin) for n in range(20)]
    jobs += [service.key(person.headers, name=f"k{n}") for n in range(20)]  # type: ignore[misc] # what they give differs
    await asyncio.gather(*jobs)
    after = await _verified(service)
    assert after["intact"] is True
    assert after["entries"] == before["entries"] + 40
    [(head,)] = service.rows("SELECT hash FROM audit_entries ORDER BY number DESC LIMIT 1")
    assert after["head"] == head


@pytest.mark.parametrize("column", TAMPERING)
@pytest.mark.parametrize("which", ["first", "middle", "last"])
async def test_tampering_with_any_field_of_any_entry_is_found_by_its_number(
    service: Service, column: str, which: str
) -> None:
    while len(numbers := [row[0] for row in service.rows("SELECT number FROM audit_entries ORDER BY number")]) < 3:
        await service.person()
    at = {"first": 0, "middle": len(numbers) // 2, "last": -1}[which]
    number = numbers[at]
    [(row,)] = service.rows("SELECT to_jsonb(a) FROM audit_entries a WHERE number = %s", number)
    tampering = f"UPDATE audit_entries SET {column} = {TAMPERING[column]} WHERE number = %s"  # noqa: S608 - the table above
    assert await service.change(tampering, number) == 1
    try:
        found = await _verified(service)
    finally:
        moved = number + 1_000_000 if column == "number" else number
        value = "(jsonb_populate_record(NULL::audit_entries, %s::jsonb))"
        query = f"UPDATE audit_entries SET {column} = {value}.{column} WHERE number = %s"  # noqa: S608 - the same
        await service.change(query, json.dumps(row), moved)
    assert found["intact"] is False
    if column == "number":
        assert found["first_broken"] == (moved if which == "last" else numbers[numbers.index(number) + 1])
    else:
        assert found["first_broken"] == number
    assert (await _verified(service))["intact"] is True


@pytest.mark.parametrize("which", ["first", "middle"])
async def test_an_entry_that_was_cut_out_is_missed(service: Service, which: str) -> None:
    while len(numbers := [row[0] for row in service.rows("SELECT number FROM audit_entries ORDER BY number")]) < 3:
        await service.person()
    at = {"first": 0, "middle": len(numbers) // 2}[which]
    await service.change("CREATE TABLE kept AS SELECT * FROM audit_entries WHERE number = %s", numbers[at])
    await service.change("DELETE FROM audit_entries WHERE number = %s", numbers[at])
    found = await _verified(service)
    await service.change("INSERT INTO audit_entries SELECT * FROM kept")
    await service.change("DROP TABLE kept")
    assert (found["intact"], found["first_broken"]) == (False, numbers[at + 1])


async def test_an_end_that_was_cut_off_shows_in_the_head(service: Service) -> None:
    await service.person()
    kept = await _verified(service)
    await service.change("CREATE TABLE kept AS SELECT * FROM audit_entries ORDER BY number DESC LIMIT 1")
    await service.change("DELETE FROM audit_entries WHERE number = (SELECT number FROM kept)")
    found = await _verified(service)
    await service.change("INSERT INTO audit_entries SELECT * FROM kept")
    await service.change("DROP TABLE kept")
    assert found["head"] != kept["head"]
    assert found["entries"] == kept["entries"] - 1


async def test_two_entries_that_changed_places_are_found(service: Service) -> None:
    await service.person()
    await service.person()
    [(last,)] = service.rows("SELECT max(number) FROM audit_entries")
    swap = "UPDATE audit_entries SET number = CASE number WHEN %s THEN %s ELSE number END"
    for old, new in ((last, -1), (last - 1, last), (-1, last - 1)):
        await service.change(swap, old, new)
    found = await _verified(service)
    for old, new in ((last, -1), (last - 1, last), (-1, last - 1)):
        await service.change(swap, old, new)
    assert (found["intact"], found["first_broken"]) == (False, last - 1)
    assert (await _verified(service))["intact"] is True
