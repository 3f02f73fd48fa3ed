from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.contract.images.harness import Service
from tests.corpora.images import disks

Eventually = Callable[..., Awaitable[None]]


async def listed(service: Service, user: str, **query: Any) -> list[str]:
    """The names of every image on every page."""
    names: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": 2, **query, **({"cursor": cursor} if cursor else {})}
        answer = await service.http.get("/api/v1/images", headers=service.as_user(user), params=params)
        assert answer.status_code == 200, answer.text
        names += [image["name"] for image in answer.json()["items"]]
        cursor = answer.json()["next_cursor"]
        assert ("link" in answer.headers) == (cursor is not None)
        if cursor is None:
            return names


async def test_a_list_shows_own_and_public_images_page_by_page(service: Service) -> None:
    mine, theirs = await service.new_user(), await service.new_user()
    for number in range(5):
        await service.image(mine, name=f"listed mine {number}")
    await service.image(theirs, name="listed theirs hidden")
    await service.image(theirs, name="listed theirs public", visibility="public")
    newest_first = ["listed theirs public", *(f"listed mine {number}" for number in (4, 3, 2, 1, 0))]
    assert await listed(service, mine, name="LISTED") == newest_first
    assert await listed(service, mine, name="listed", sort="created_at") == newest_first[::-1]
    assert await listed(service, mine, name="listed", sort="-name", limit=200) == sorted(newest_first, reverse=True)
    assert await listed(service, mine, name="listed", visibility="public") == ["listed theirs public"]
    assert len(await listed(service, theirs, name="listed")) == 2


@pytest.mark.parametrize("sort", ["name", "-size_bytes", "downloads", "-updated_at", "created_at"])
async def test_every_order_reaches_every_image_once(service: Service, sort: str) -> None:
    user = await service.new_user()
    names = [f"sorted {sort} {number}" for number in range(5)]
    for name in names:
        await service.image(user, name=name)
    assert sorted(await listed(service, user, name=f"sorted {sort} ", sort=sort)) == sorted(names)


async def test_filters_narrow_a_list(service: Service) -> None:
    user = await service.new_user()
    await service.image(user, name="filter a", os_type="Ubuntu", architecture="arm64")
    await service.image(user, disks.iso(), filename="b.iso", name="filter b 100%_", os_type="Windows")
    assert await listed(service, user, name="filter", os_type="ubuntu") == ["filter a"]
    assert await listed(service, user, name="filter", architecture="arm64") == ["filter a"]
    assert await listed(service, user, name="filter", format="iso") == ["filter b 100%_"]
    assert await listed(service, user, name="100%_") == ["filter b 100%_"]
    assert await listed(service, user, name="filter%b") == []
    assert await listed(service, user, name="filter", status="deactivated") == []


@pytest.mark.parametrize("query", ["sort=owner_id", "format=exe", "cursor=x", "limit=0", "name=%00", "limit=1000"])
async def test_a_wrong_query_is_a_422(service: Service, query: str) -> None:
    headers = service.as_user(await service.new_user())
    assert (await service.http.get(f"/api/v1/images?{query}", headers=headers)).status_code == 422


async def test_a_stranger_meets_a_private_image_as_if_it_did_not_exist(service: Service) -> None:
    owner, stranger = await service.new_user(), await service.new_user()
    image = await service.image(owner)
    calls = (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("GET", "/download"),
        ("POST", "/deactivate"),
        ("POST", "/activate"),
    )
    for method, path in calls:
        answers = []
        for image_id in (image["id"], "01890000-0000-7000-8000-000000000000"):
            url = f"/api/v1/images/{image_id}{path}"
            body = {"name": "mine"} if method == "PATCH" else None
            answer = await service.http.request(method, url, headers=service.as_user(stranger), json=body)
            answers.append((answer.status_code, answer.json()["type"], answer.json()["detail"]))
        assert answers[0] == answers[1]
        assert answers[0][0] == 404


async def test_a_public_image_can_be_read_by_all_and_changed_by_its_owner_alone(service: Service) -> None:
    owner, reader = await service.new_user(), await service.new_user()
    url = f"/api/v1/images/{(await service.image(owner, visibility='public'))['id']}"
    assert (await service.http.get(url, headers=service.as_user(reader))).status_code == 200
    assert (await service.http.get(f"{url}/download", headers=service.as_user(reader))).status_code == 200
    patched = await service.http.patch(url, headers=service.as_user(reader), json={"visibility": "private"})
    assert patched.status_code == 404
    assert (await service.http.delete(url, headers=service.as_user(reader))).status_code == 404
    admin = service.as_user("root", role="ADMIN")
    assert (await service.http.patch(url, headers=admin, json={"visibility": "private"})).status_code == 200
    assert (await service.http.get(url, headers=service.as_user(reader))).status_code == 404


async def test_another_service_may_read_any_image_and_change_none(service: Service) -> None:
    url = f"/api/v1/images/{(await service.image(await service.new_user()))['id']}"
    vms = service.as_user("service:vms", role="SERVICE")
    assert (await service.http.get(url, headers=vms)).status_code == 200
    assert (await service.http.get(f"{url}/download", headers=vms)).status_code == 200
    assert (await service.http.delete(url, headers=vms)).status_code == 403


async def test_a_patch_changes_what_it_names_and_nothing_else(service: Service, eventually: Eventually) -> None:
    user = await service.new_user()
    before = await service.image(user, description="old")
    url, headers = f"/api/v1/images/{before['id']}", service.as_user(user)
    change = {"name": "New", "tags": ["lts", "cloud"], "protected": True, "os_type": "Ubuntu"}
    answer = await service.http.patch(url, headers=headers, json=change)
    after = answer.json()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"name", "tags", "protected", "os", "os_type", "etag", "updated_at"}
    assert answer.headers["etag"] == after["etag"] == '"2"'
    assert (await service.http.get(url, headers=headers)).json() == after
    await service.http.patch(url, headers=headers, json={"visibility": "public"})

    def told() -> list[tuple[str, str]]:
        """To whom the image was told to be offered at each change of it."""
        events = [event for event in service.heard if event.subject == before["id"]]
        return [(event.data["name"], event.data["visibility"]) for event in events if ".updated." in event.type]

    await eventually(lambda: told() == [("New", "private"), ("New", "public")])


@pytest.mark.parametrize(
    "change",
    [
        {"owner_id": "me"},
        {"status": "active"},
        {"sha256": "0" * 64},
        {"downloads": 9},
        {"name": ""},
        {"name": "a\0b"},
        {"tags": ["x"] * 51},
        {"visibility": "everyone"},
    ],
    ids=str,
)
async def test_a_patch_of_what_is_not_the_clients_to_set_is_a_422(service: Service, change: dict[str, Any]) -> None:
    user = await service.new_user()
    image = await service.image(user)
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(user)
    assert (await service.http.patch(url, headers=headers, json=change)).status_code == 422
    assert (await service.http.get(url, headers=headers)).json() == image


async def test_a_change_meant_for_another_version_is_a_412(service: Service) -> None:
    user = await service.new_user()
    image = await service.image(user)
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(user)
    guarded = {**headers, "if-match": image["etag"]}
    assert (await service.http.patch(url, headers=guarded, json={"name": "First"})).status_code == 200
    assert (await service.http.patch(url, headers=guarded, json={"name": "Second"})).status_code == 412
    assert (await service.http.delete(url, headers=guarded)).status_code == 412
    assert (await service.http.get(url, headers=headers)).json()["name"] == "First"


async def test_a_deactivated_image_cannot_be_downloaded_until_it_is_active_again(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    image = await service.image(user)
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(user)
    assert (await service.http.post(f"{url}/activate", headers=headers)).status_code == 409
    assert (await service.http.post(f"{url}/deactivate", headers=headers)).json()["status"] == "deactivated"
    assert (await service.http.get(f"{url}/download", headers=headers)).status_code == 409
    assert (await service.http.post(f"{url}/deactivate", headers=headers)).status_code == 409
    assert (await service.http.post(f"{url}/activate", headers=headers)).json()["status"] == "active"
    assert (await service.http.get(f"{url}/download", headers=headers)).status_code == 200

    def told() -> list[tuple[str, int]]:
        return [(event.type.split(".")[2], event.sequence) for event in service.heard if event.subject == image["id"]]

    await eventually(lambda: len(told()) == 3)
    assert told() == [("activated", 1), ("deactivated", 2), ("activated", 3)]


async def test_a_protected_image_is_deleted_only_after_its_protection_is_lifted(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    image = await service.image(user, disks.qcow2(virtual_size=99 << 20))
    files = len(service.files())
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(user)
    await service.http.patch(url, headers=headers, json={"protected": True})
    refused = await service.http.delete(url, headers=headers)
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/image-protected")
    await service.http.patch(url, headers=headers, json={"protected": False})
    assert (await service.http.delete(url, headers=headers)).status_code == 204
    assert (await service.http.get(url, headers=headers)).status_code == 404
    assert len(service.files()) == files - 1
    assert service.used_bytes(user) == 0
    await eventually(lambda: service.heard[-1].type == "images.image.deleted.v1")
    told = service.heard[-1]
    assert (told.subject, told.sequence, told.data["status"]) == (image["id"], 4, "deleted")
    assert told.data["usage"]["used"] == {"image_bytes": 0}


async def test_statistics_are_ones_own_and_everyones_for_an_administrator(service: Service) -> None:
    user = await service.new_user()
    assert (await service.http.get("/api/v1/stats", headers=service.as_user(user))).json()["images"] == 0
    image = await service.image(user, os_type="Ubuntu")
    disc = await service.image(user, disks.iso(), filename="a.iso", os_type="Windows")
    await service.http.get(f"/api/v1/images/{image['id']}/download", headers=service.as_user(user))
    own = (await service.http.get("/api/v1/stats", headers=service.as_user(user))).json()
    assert (own["images"], own["downloads"], own["all"]) == (2, 1, None)
    assert own["bytes"] == image["size_bytes"] + disc["size_bytes"]
    assert own["by_os"]["Ubuntu"] == {"images": 1, "bytes": image["size_bytes"], "downloads": 1}
    assert own["by_format"]["iso"]["images"] == own["by_format"]["qcow2"]["images"] == 1
    assert own["by_status"]["active"]["images"] == 2
    everyones = (await service.http.get("/api/v1/stats", headers=service.as_user("root", role="ADMIN"))).json()
    assert everyones["images"] == 0
    assert everyones["all"]["images"] >= 2
