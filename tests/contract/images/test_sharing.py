from dataclasses import replace
from typing import Any

import httpx
import pytest

from libs.common.testing.serving import user_event
from tests.contract.images.harness import Service

NOBODYS = "01890000-0000-7000-8000-000000000000"


async def put(service: Service, user: str, image_id: str, *members: str, **headers: str) -> httpx.Response:
    url = f"/api/v1/images/{image_id}/members"
    return await service.http.put(url, headers={**service.as_user(user), **headers}, json={"members": list(members)})


async def members(service: Service, user: str, image_id: str) -> Any:
    answer = await service.http.get(f"/api/v1/images/{image_id}/members", headers=service.as_user(user))
    return answer.status_code if answer.is_error else [member["id"] for member in answer.json()["members"]]


async def status(service: Service, user: str, path: str) -> int:
    return (await service.http.get(f"/api/v1/images/{path}", headers=service.as_user(user))).status_code


async def names(service: Service, user: str, **query: str) -> list[str]:
    answer = await service.http.get("/api/v1/images", headers=service.as_user(user), params=query)
    return [image["name"] for image in answer.json()["items"]]


async def deleted(service: Service, user: str) -> None:
    await service.bus.publish(replace(user_event(user, sequence=9), type="auth.user.deleted.v1"))


async def test_a_member_reads_lists_and_downloads_a_shared_image_and_a_stranger_does_not(service: Service) -> None:
    owner, member, stranger = [await service.new_user() for _ in range(3)]
    image = await service.image(owner, name="for a few", visibility="shared")
    assert (await put(service, owner, image["id"], member)).status_code == 200
    for path in (image["id"], f"{image['id']}/download", f"{image['id']}/members", f"{image['id']}/provenance"):
        assert await status(service, member, path) == 200, path
        assert await status(service, stranger, path) == 404, path
    for query in ({}, {"visibility": "shared"}, {"name": "FEW"}, {"status": "active"}):
        assert await names(service, member, **query) == ["for a few"], query
        assert await names(service, stranger, **query) == [], query
    for query in ({"visibility": "private"}, {"visibility": "public"}, {"status": "queued"}, {"name": "many"}):
        assert await names(service, member, **query) == [], query


async def test_an_image_shared_by_an_id_is_not_shared_with_who_took_that_id_as_a_name(service: Service) -> None:
    owner, member, impostor = [await service.new_user() for _ in range(3)]
    renamed = user_event(impostor, sequence=2)
    await service.bus.publish(replace(renamed, data={**renamed.data, "username": member}))
    image = await service.image(owner, visibility="shared")
    assert (await put(service, owner, image["id"], member)).status_code == 200
    assert await members(service, owner, image["id"]) == [member]
    assert await status(service, impostor, image["id"]) == 404


async def test_a_member_changes_nothing(service: Service) -> None:
    owner, member = await service.new_user(), await service.new_user()
    image = await service.image(owner, visibility="shared")
    await put(service, owner, image["id"], member)
    assert (await put(service, member, image["id"], member)).status_code == 404
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(member)
    for method, path in (
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/deactivate"),
        ("POST", "/activate"),
        ("POST", "/verify"),
    ):
        body = {"name": "mine"} if method == "PATCH" else None
        assert (await service.http.request(method, url + path, headers=headers, json=body)).status_code == 404
    assert await members(service, owner, image["id"]) == [member]


async def test_the_list_is_kept_but_has_no_effect_while_the_image_is_not_shared(service: Service) -> None:
    owner, member = await service.new_user(), await service.new_user()
    image = await service.image(owner)
    answer = (await put(service, owner, image["id"], member)).json()
    assert (answer["visibility"], answer["effective"]) == ("private", False)
    assert await status(service, member, image["id"]) == 404
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(owner)
    for visibility, shown in (("shared", 200), ("private", 404), ("shared", 200)):
        await service.http.patch(url, headers=headers, json={"visibility": visibility})
        assert await status(service, member, image["id"]) == shown, visibility
    assert (await service.http.get(f"{url}/members", headers=headers)).json()["effective"] is True


async def test_a_new_list_replaces_the_old_one(service: Service) -> None:
    owner, first, second = [await service.new_user() for _ in range(3)]
    image = await service.image(owner, visibility="shared")
    await put(service, owner, image["id"], first)
    await put(service, owner, image["id"], second, second, owner)
    assert await members(service, owner, image["id"]) == [second]
    assert await status(service, first, image["id"]) == 404
    assert (await put(service, owner, image["id"])).json()["members"] == []
    assert await status(service, second, image["id"]) == 404


async def test_the_owner_sees_all_members_and_a_member_only_themselves(service: Service) -> None:
    owner, first, second, stranger = [await service.new_user() for _ in range(4)]
    image = await service.image(owner, visibility="shared")
    await put(service, owner, image["id"], first, second)
    assert await members(service, owner, image["id"]) == sorted([first, second])
    assert await members(service, first, image["id"]) == [first]
    assert await members(service, stranger, image["id"]) == 404
    await service.http.patch(
        f"/api/v1/images/{image['id']}", headers=service.as_user(owner), json={"visibility": "public"}
    )
    assert await members(service, stranger, image["id"]) == []


async def test_members_are_named_by_id_name_or_external_id(service: Service) -> None:
    owner, by_id, by_name = [await service.new_user() for _ in range(3)]
    await service.bus.publish(user_event("by-external", external_id="student-77", sequence=1))
    image = await service.image(owner, visibility="shared")
    answer = await put(service, owner, image["id"], by_id, f"name-of-{by_name}", "student-77")
    assert answer.status_code == 200
    shown = {member["id"]: member["username"] for member in answer.json()["members"]}
    assert shown == {user: f"name-of-{user}" for user in (by_id, by_name, "by-external")}


async def test_unknown_members_are_a_422_that_names_each_and_nothing_changes(service: Service) -> None:
    owner, known = await service.new_user(), await service.new_user()
    image = await service.image(owner, visibility="shared")
    await put(service, owner, image["id"], known)
    answer = await put(service, owner, image["id"], "nobody", known, "no one")
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/member-unknown")
    assert "'nobody'" in answer.json()["detail"]
    assert "'no one'" in answer.json()["detail"]
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/body/members/0", "/body/members/2"]
    assert await members(service, owner, image["id"]) == [known]


@pytest.mark.parametrize(
    "body", [{}, {"members": [""]}, {"members": ["x"] * 201}, {"members": "x"}, {"members": ["a\0"]}]
)
async def test_a_list_that_is_none_is_a_422(service: Service, body: dict[str, Any]) -> None:
    owner = await service.new_user()
    image = await service.image(owner)
    url = f"/api/v1/images/{image['id']}/members"
    assert (await service.http.put(url, headers=service.as_user(owner), json=body)).status_code == 422


async def test_whose_image_it_is_not_learns_nothing_of_who_is_known(service: Service) -> None:
    owner, stranger = await service.new_user(), await service.new_user()
    image = await service.image(owner, visibility="public")
    answers = [await put(service, stranger, image_id, "nobody") for image_id in (image["id"], NOBODYS)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json()["detail"] == answers[1].json()["detail"]


async def test_an_administrator_shares_anybodys_image_and_a_service_none(service: Service) -> None:
    owner, member = await service.new_user(), await service.new_user()
    image = await service.image(owner, visibility="shared")
    url, body = f"/api/v1/images/{image['id']}/members", {"members": [member]}
    admin = service.as_user("root", role="ADMIN")
    assert (await service.http.put(url, headers=admin, json=body)).status_code == 200
    assert (await service.http.get(url, headers=admin)).json()["members"] != []
    vms = service.as_user("service:vms", role="SERVICE")
    assert (await service.http.put(url, headers=vms, json=body)).status_code == 403


async def test_a_list_meant_for_another_version_is_a_412(service: Service) -> None:
    owner, member = await service.new_user(), await service.new_user()
    image = await service.image(owner, visibility="shared")
    first = await put(service, owner, image["id"], member, **{"if-match": image["etag"]})
    assert (first.status_code, first.headers["etag"]) == (200, '"2"')
    assert (await put(service, owner, image["id"], **{"if-match": image["etag"]})).status_code == 412
    assert await members(service, owner, image["id"]) == [member]


async def test_a_deleted_user_is_on_no_list_any_more(service: Service) -> None:
    owner, leaver, stayer = [await service.new_user() for _ in range(3)]
    images = [await service.image(owner, visibility="shared") for _ in range(2)]
    for image in images:
        await put(service, owner, image["id"], leaver, stayer)
    await deleted(service, leaver)
    for image in images:
        assert await members(service, owner, image["id"]) == [stayer]
    assert (await put(service, owner, images[0]["id"], leaver)).status_code == 422
    assert service.rows("SELECT count(*) FROM image_members WHERE user_id = %s", leaver) == [(0,)]


async def test_the_members_of_a_deleted_image_are_forgotten(service: Service) -> None:
    owner, member = await service.new_user(), await service.new_user()
    image = await service.image(owner, visibility="shared")
    await put(service, owner, image["id"], member)
    answer = await service.http.delete(f"/api/v1/images/{image['id']}", headers=service.as_user(owner))
    assert answer.status_code == 204
    assert service.rows("SELECT count(*) FROM image_members WHERE image_id = %s", image["id"]) == [(0,)]
