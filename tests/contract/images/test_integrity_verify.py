"""The check of one image's file, as an operation."""

import hashlib
from pathlib import Path

from tests.contract.images.harness import Service, running
from tests.contract.images.rotting import ended, file_of, flip, shown
from tests.corpora.images import disks

MIB = 1 << 20


async def test_the_owner_has_an_image_checked_at_once(service: Service) -> None:
    owner = await service.new_user()
    image = await service.image(owner, disks.raw_disk(MIB), filename="a.img")
    url = f"/api/v1/images/{image['id']}/verify"
    for headers in (service.as_user(owner), service.as_user("root", role="ADMIN")):
        answer = await service.http.post(url, headers=headers)
        assert answer.status_code == 202
        assert answer.headers["location"] == f"/api/v1/operations/{answer.json()['id']}"
        assert (answer.json()["kind"], answer.json()["resource"]) == (
            "image.rehash",
            {"type": "image", "id": image["id"]},
        )
        user = answer.json()["owner_id"]
        admin = {"role": "ADMIN"} if user == "root" else {}
        found = await ended(service, user, answer.json()["id"], **admin)
        assert (found["state"], found["progress"]) == ("succeeded", 1.0)
    stranger = await service.http.post(url, headers=service.as_user(await service.new_user()))
    assert stranger.status_code == 404


async def test_who_asks_again_while_a_check_runs_is_told_of_that_one(new_database_url: str, tmp_path: Path) -> None:
    async with running(new_database_url, tmp_path, rehash_bytes_per_s=MIB // 8) as service:
        owner = await service.new_user()
        image = await service.image(owner, disks.raw_disk(MIB), filename="a.img")
        url, headers = f"/api/v1/images/{image['id']}/verify", service.as_user(owner)
        begun = [(await service.http.post(url, headers=headers)).json()["id"] for _ in range(3)]
        assert len(set(begun)) == 1
        await service.http.delete(f"/api/v1/operations/{begun[0]}", headers=headers)
        assert (await ended(service, owner, begun[0]))["state"] == "cancelled"
        after = await service.http.post(url, headers=headers)
        assert (after.status_code, after.json()["id"] in begun) == (202, False)


async def test_the_check_of_a_rotten_file_fails_with_what_is_wrong_and_of_a_mended_one_succeeds(
    service: Service,
) -> None:
    owner = await service.new_user()
    content = disks.raw_disk(MIB)
    image = await service.image(owner, content, filename="a.img")
    path = file_of(service, hashlib.sha256(content).hexdigest())
    flip(path)
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(owner)
    for _ in range(2):
        begun = await service.http.post(f"{url}/verify", headers=headers)
        found = await ended(service, owner, begun.json()["id"])
        assert (found["state"], found["error"]["type"]) == ("failed", "/problems/blob-rotten")
        assert "no longer has the SHA-256 digest" in found["error"]["detail"]
        assert (await shown(service, owner, image))["etag"] == '"2"'
    path.write_bytes(content)  # an operator brought the file back from a backup
    begun = await service.http.post(f"{url}/verify", headers=headers)
    assert (await ended(service, owner, begun.json()["id"]))["state"] == "succeeded"
    assert (await service.http.post(f"{url}/activate", headers=headers)).json()["status"] == "active"


async def test_an_image_without_a_file_has_nothing_to_check(service: Service) -> None:
    owner = await service.new_user()
    image = await service.image(owner)
    await service.change("UPDATE images SET status = 'uploading', sha256 = NULL WHERE id = %s", image["id"])
    answer = await service.http.post(f"/api/v1/images/{image['id']}/verify", headers=service.as_user(owner))
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/image-state")
    assert "still arriving" in answer.json()["detail"]
