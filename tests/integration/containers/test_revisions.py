"""Revisions on a real engine: redeployed with a change, rolled back, and back by themselves when they are not well."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from libs.common.db import Database
from libs.common.uow import UnitOfWorkFactory
from services.containers.adapters.code import FolderCodeStore
from services.containers.domain.stacks import project_name
from services.containers.service import Sweeper
from tests.contract.containers.harness import SITE, Service, zip_of
from tests.integration.containers.conftest import Remains

pytestmark = pytest.mark.docker


async def page(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False) as web:
        return (await web.get(url)).text


async def changed(service: Service, user: str, stack: dict[str, Any], files: dict[str, str]) -> httpx.Response:
    upload = {"zip_file": ("b.zip", zip_of(files), "application/zip")}
    path = f"/api/v1/stacks/{stack['id']}/redeploy"
    return await service.http.post(path, headers=service.as_user(user), files=upload)


async def revisions(service: Service, user: str, stack: dict[str, Any]) -> list[dict[str, Any]]:
    path = f"/api/v1/stacks/{stack['id']}/revisions"
    answer = await service.http.get(path, headers=service.as_user(user))
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def test_a_stack_is_redeployed_with_other_code_and_rolled_back(service: Service, remains: Remains) -> None:
    user = await service.new_user()
    stack = await service.done(user, await service.create(user, files=SITE))
    shown = await service.get(user, stack["id"])
    assert shown["revision"] == 1

    answer = await changed(service, user, stack, {"index.html": "second"})
    assert answer.json()["stack"]["state"] == "deploying"
    await service.done(user, answer)
    again = await service.get(user, stack["id"])
    assert (again["revision"], again["url"], again["state"]) == (2, shown["url"], "running")
    assert await page(shown["url"]) == "second"

    path = f"/api/v1/stacks/{stack['id']}/rollback"
    await service.done(user, await service.http.post(path, headers=service.as_user(user)))
    assert await page(shown["url"]) == SITE["index.html"]
    listed = await revisions(service, user, stack)
    told = [(one["number"], one["state"], one["cause"], one["of_revision"]) for one in listed]
    assert told == [
        (3, "active", "rollback", 1),
        (2, "superseded", "redeploy", None),
        (1, "superseded", "create", None),
    ]
    assert listed[0]["source"] == listed[2]["source"]
    assert listed[0]["source"]["digest"].startswith("sha256:")
    assert listed[0]["images"]["static"]["image_id"].startswith("sha256:")
    by_number = await service.http.post(path, headers=service.as_user(user), json={"revision": 2})
    await service.done(user, by_number)
    assert await page(shown["url"]) == "second"
    await service.act(user, stack["id"], "delete")
    assert remains(project_name(UUID(stack["id"]))) == []
    assert service.used(user) == {}


_SERVER = "require('http').createServer((_, r) => r.end('well')).listen(process.env.PORT)"
CODE = {"package.json": '{"scripts": {"start": "node s.js"}}', "s.js": _SERVER}


@pytest.mark.parametrize(
    ("broken", "slug"),
    [
        ({"readme.txt": "no package.json"}, "build-failed"),
        pytest.param({**CODE, "s.js": "process.exit(3)"}, "stack-unhealthy", marks=pytest.mark.long),
    ],
    ids=["not built", "not well"],
)
async def test_a_revision_that_does_not_get_well_gives_way_to_the_one_before(
    service: Service, remains: Remains, broken: dict[str, str], slug: str
) -> None:
    user = await service.new_user()
    stack = await service.done(user, await service.create(user, files=CODE, service_types="Node.js"))
    shown = await service.get(user, stack["id"])
    assert await page(shown["url"]) == "well"
    answer = await changed(service, user, stack, broken)
    operation = await service.ended(user, answer.json()["id"], 90)
    assert operation["state"] == "failed", operation
    assert operation["error"]["type"] == f"/problems/{slug}"
    back = await service.get(user, stack["id"])
    assert (back["state"], back["health"], back["revision"]) == ("running", "healthy", 1)
    assert "rolled back to 1" in back["reason"]
    assert await page(shown["url"]) == "well"
    listed = await revisions(service, user, stack)
    assert [one["state"] for one in listed] == ["failed", "active"]
    path = f"/api/v1/stacks/{stack['id']}/rollback"
    refused = await service.http.post(path, headers=service.as_user(user), json={"revision": 2})
    assert refused.json()["type"] == "/problems/revision-unusable"
    missing = await service.http.post(path, headers=service.as_user(user), json={"revision": 99})
    assert missing.json()["type"] == "/problems/revision-not-found"
    folder = service.settings.stacks_dir / UUID(stack["id"]).hex
    assert sorted(one.name for one in folder.glob("code-*")) == ["code-1"]
    await service.act(user, stack["id"], "delete")
    assert remains(project_name(UUID(stack["id"]))) == []


async def test_other_variables_keep_the_code_as_it_is_and_generated_secrets(service: Service) -> None:
    user = await service.new_user()
    code = {"index.php": "<?php echo getenv('APP_ENV');"}
    made = await service.create(user, files=code, service_types="php", file_manager="true")
    stack = await service.done(user, made)
    before = await service.get(user, stack["id"])
    login = ("admin", before["variables"]["admin_pass"])
    async with httpx.AsyncClient(trust_env=False, auth=login) as web:
        edited = b"<?php echo 'edited ', getenv('APP_ENV');"
        assert (await web.put(f"{before['file_manager']['url']}/index.php", content=edited)).status_code == 201
    path = f"/api/v1/stacks/{stack['id']}/redeploy"
    asked = {"variables": {"app_env": "development"}, "limits": {"memory_mib": 300}}
    await service.done(user, await service.http.post(path, headers=service.as_user(user), json=asked))
    after = await service.get(user, stack["id"])
    assert await page(after["url"]) == "edited development"
    assert after["variables"]["admin_pass"] == before["variables"]["admin_pass"]
    assert (after["limits"]["memory_mib"], service.used(user)["memory_mib"]) == (300, 300 + 128)
    wrong = await service.http.post(path, headers=service.as_user(user), json={"variables": {"app_env": "x"}})
    assert wrong.status_code == 422
    stale = await service.http.post(path, headers={**service.as_user(user), "if-match": '"1"'})
    assert stale.status_code == 412
    await service.act(user, stack["id"], "delete")


async def test_a_refused_revision_leaves_no_archive(service: Service) -> None:
    user = await service.new_user(memory_mib=400)
    stack = await service.done(user, await service.create(user, files=SITE))
    path = f"/api/v1/stacks/{stack['id']}/redeploy"
    form, upload = {"limits": '{"memory_mib": 500}'}, {"zip_file": ("b.zip", zip_of(SITE), "application/zip")}
    answer = await service.http.post(path, headers=service.as_user(user), data=form, files=upload)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/quota-exceeded")
    folder = service.settings.stacks_dir / UUID(stack["id"]).hex
    assert len(list(folder.glob("sources/*"))) == 1
    await service.act(user, stack["id"], "delete")


async def test_revisions_beyond_the_retention_are_forgotten_with_their_code(service: Service) -> None:
    user = await service.new_user()
    stack = await service.done(user, await service.create(user, files=SITE))
    for number in (2, 3):
        await service.done(user, await changed(service, user, stack, {"index.html": str(number)}))
    folder = service.settings.stacks_dir / UUID(stack["id"]).hex
    database = Database(service.settings.database_url, pool_size=2)
    uow, code = UnitOfWorkFactory(database, source="/telar/containers"), FolderCodeStore(service.settings.stacks_dir)
    await Sweeper(uow, code, keep_revisions=2, least_age_s=-1).sweep()
    await database.close()
    assert [one["number"] for one in await revisions(service, user, stack)] == [3, 2]
    assert [one.name for one in folder.glob("code-*")] == ["code-3"]
    assert len(list(folder.glob("sources/*"))) == 2
    await service.done(
        user, await service.http.post(f"/api/v1/stacks/{stack['id']}/rollback", headers=service.as_user(user))
    )
    assert await page((await service.get(user, stack["id"]))["url"]) == "2"
    await service.act(user, stack["id"], "delete")


@pytest.mark.parametrize("gone", ["the stack", "the revision"])
async def test_what_needed_an_operator_ends_when_its_stack_or_revision_is_gone(service: Service, gone: str) -> None:
    user = await service.new_user()
    stack = await service.done(user, await service.create(user, files=SITE))
    begun = await changed(service, user, stack, {"index.html": "second"})
    await service.done(user, begun)
    undoing = "UPDATE operations SET state = 'needs_operator', direction = 'backward' WHERE id = %s"
    await service.change(undoing, begun.json()["id"])
    if gone == "the stack":
        await service.act(user, stack["id"], "delete")
    else:
        await service.done(user, await changed(service, user, stack, {"index.html": "third"}))
        await service.change("DELETE FROM stack_revisions WHERE stack_id = %s AND number = 2", stack["id"])
    path, administrator = f"/api/v1/operations/{begun.json()['id']}/resume", service.as_user("admin", role="ADMIN")
    resumed = await service.http.post(path, headers=administrator)
    assert resumed.status_code in (200, 202), resumed.text
    assert (await service.ended(user, begun.json()["id"], deadline_s=20))["state"] == "cancelled"
    if gone == "the revision":
        shown = await service.get(user, stack["id"])
        assert (shown["state"], shown["revision"], await page(shown["url"])) == ("running", 3, "third")
        await service.act(user, stack["id"], "delete")
