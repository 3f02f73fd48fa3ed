"""Both corpora through the upload route: what is refused leaves nothing, what is accepted is the file that was sent."""

import hashlib
from pathlib import Path

import pytest

from tests.contract.images.harness import Service
from tests.corpora.images.hostile import HOSTILE, QUOTA, Hostile
from tests.corpora.images.programs import no_program_starts
from tests.corpora.images.valid import VALID, Valid, made_by_tools

LEFTOVERS = (
    "SELECT (SELECT count(*) FROM uploads), (SELECT count(*) FROM images WHERE owner_id = %s),"
    " (SELECT count(*) FROM blobs WHERE key LIKE %s)"
)


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.what)
async def test_a_hostile_upload_is_refused_and_nothing_is_left_over(service: Service, hostile: Hostile) -> None:
    user, files = await service.new_user(), service.files()
    with no_program_starts():
        answer = await service.upload(user, hostile.content, filename=hostile.filename)
    assert answer.status_code == (409 if hostile.slug == QUOTA else 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"/problems/{hostile.slug}"
    assert hostile.reason in answer.json()["detail"]
    digest = hashlib.sha256(hostile.content).hexdigest()
    assert service.rows(LEFTOVERS, user, f"%{digest}%") == [(0, 0, 0)]
    assert service.used_bytes(user) == 0
    assert service.files() == files
    assert (await service.http.get("/api/v1/images", headers=service.as_user(user))).json()["items"] == []


@pytest.mark.parametrize("valid", VALID, ids=lambda valid: valid.what)
async def test_a_valid_upload_becomes_an_active_image(service: Service, valid: Valid) -> None:
    await expect_an_active_image(service, valid)


async def test_what_other_tools_write_becomes_active_images(service: Service, tmp_path: Path) -> None:
    for valid in made_by_tools(tmp_path):
        await expect_an_active_image(service, valid)


async def expect_an_active_image(service: Service, valid: Valid) -> None:
    user = await service.new_user()
    with no_program_starts():
        answer = await service.upload(user, valid.content, filename=valid.filename)
    assert answer.status_code == 201, f"{valid.what}: {answer.text}"
    image = answer.json()["image"]
    assert image["status"] == "active"
    assert (image["format"], image["virtual_size_bytes"]) == (valid.format, valid.virtual_size), valid.what
    assert image["sha256"] == hashlib.sha256(valid.content).hexdigest()
    assert image["sha512"] == hashlib.sha512(valid.content).hexdigest()
    assert image["size_bytes"] == len(valid.content) == service.used_bytes(user)
    path = f"/api/v1/images/{image['id']}"
    assert (await service.http.get(f"{path}/download", headers=service.as_user(user))).content == valid.content
    assert (await service.http.delete(path, headers=service.as_user(user))).status_code == 204
    assert service.used_bytes(user) == 0
