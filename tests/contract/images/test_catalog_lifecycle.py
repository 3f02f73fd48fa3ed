"""Every status meets every action."""

from typing import Any

import httpx
import pytest

from services.images.domain import Status
from tests.contract.images.harness import Service

STATUSES = [status.value for status in Status if status is not Status.DELETED]
ALLOWED: dict[str, set[str]] = {
    "patch": {"queued", "uploading", "verifying", "active", "deactivated", "rejected"},
    "members": {"queued", "uploading", "verifying", "active", "deactivated", "rejected"},
    "deactivate": {"active"},
    "activate": {"deactivated"},
    "verify": {"active", "deactivated"},
    "download": {"active"},
    "delete": {"queued", "uploading", "verifying", "active", "deactivated", "rejected"},
}


async def image_in(service: Service, owner: str, status: str) -> dict[str, Any]:
    image = await service.image(owner, visibility="public")
    await service.change("UPDATE images SET status = %s WHERE id = %s", status, image["id"])
    return image


async def act(service: Service, user: str, image_id: str, action: str) -> httpx.Response:
    url, headers = f"/api/v1/images/{image_id}", service.as_user(user)
    if action == "patch":
        return await service.http.patch(url, headers=headers, json={"name": "renamed"})
    if action == "members":
        return await service.http.put(f"{url}/members", headers=headers, json={"members": []})
    if action == "download":
        return await service.http.get(f"{url}/download", headers=headers)
    if action == "delete":
        return await service.http.delete(url, headers=headers)
    return await service.http.post(f"{url}/{action}", headers=headers)


@pytest.mark.parametrize("action", list(ALLOWED))
@pytest.mark.parametrize("status", STATUSES)
async def test_an_action_is_done_where_the_status_allows_it_and_else_refused_with_words(
    service: Service, status: str, action: str
) -> None:
    owner = await service.new_user()
    image = await image_in(service, owner, status)
    answer = await act(service, owner, image["id"], action)
    if status in ALLOWED[action]:
        assert answer.is_success, answer.text
        return
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/image-state")
    assert answer.json()["detail"].startswith(f"The image is {status}")
    ((found, version),) = service.rows("SELECT status, version FROM images WHERE id = %s", image["id"])
    assert (found, version) == (status, 1)


@pytest.mark.parametrize("status", STATUSES)
async def test_others_see_a_public_image_only_once_it_was_active(service: Service, status: str) -> None:
    owner, reader = await service.new_user(), await service.new_user()
    image = await image_in(service, owner, status)
    seen = status in ("active", "deactivated")
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(reader)
    assert (await service.http.get(url, headers=headers)).status_code == (200 if seen else 404)
    listed = await service.http.get("/api/v1/images", headers=headers, params={"limit": 200})
    assert (image["id"] in [one["id"] for one in listed.json()["items"]]) is seen


@pytest.mark.parametrize("status", STATUSES)
async def test_a_protected_image_stays_in_every_status(service: Service, status: str) -> None:
    owner = await service.new_user()
    image = await image_in(service, owner, status)
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(owner)
    assert (await service.http.patch(url, headers=headers, json={"protected": True})).status_code == 200
    refused = await service.http.delete(url, headers=headers)
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/image-protected")
    assert (await service.http.patch(url, headers=headers, json={"protected": False})).status_code == 200
    assert (await service.http.delete(url, headers=headers)).status_code == 204


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", "13.1"),
        ("architecture", "aarch64"),
        ("tags", ["a", "b"]),
        ("tags", []),
        ("min_disk_gib", 20),
        ("min_memory_mib", 2048),
        ("description", "Two\nlines"),
        ("visibility", "shared"),
        ("os_type", "Fedora"),
        ("name", "Renamed"),
        ("protected", True),
    ],
)
async def test_each_field_of_a_patch_is_stored_and_nothing_else_changes(
    service: Service, field: str, value: Any
) -> None:
    owner = await service.new_user()
    before = await service.image(owner, version="12", tags="lts", description="Old")
    url, headers = f"/api/v1/images/{before['id']}", service.as_user(owner)
    after = (await service.http.patch(url, headers=headers, json={field: value})).json()
    assert after[field] == value
    twin = {"os": "os_type"}
    changed = {twin.get(name, name) for name in after if after[name] != before[name]}
    assert changed == {field, "etag", "updated_at"}
    assert after["etag"] == '"2"'
    assert (await service.http.get(url, headers=headers)).json() == after


@pytest.mark.parametrize(
    "change",
    [{"version": "x" * 201}, {"architecture": "a b"}, {"min_disk_gib": -1}, {"min_memory_mib": "much"}],
    ids=str,
)
async def test_a_patch_with_a_wrong_value_is_a_422(service: Service, change: dict[str, Any]) -> None:
    owner = await service.new_user()
    image = await service.image(owner)
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(owner)
    assert (await service.http.patch(url, headers=headers, json=change)).status_code == 422
    assert (await service.http.get(url, headers=headers)).json() == image
