"""Stacks from Git repositories, on a real engine: found out, cloned, redeployed at the next commit, rolled back."""

from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from libs.common.settings import CommonSettings
from libs.common.testing.stack import require_engine
from services.containers.domain.stacks import project_name
from tests.contract.containers.git_server import GitServer, serving_git
from tests.contract.containers.harness import Service, running, zip_of
from tests.integration.containers.conftest import Remains

pytestmark = pytest.mark.docker
TOKEN = "deploy-token-5521"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    require_engine()
    with serving_git(tmp_path_factory.mktemp("git")) as server:
        yield server


@pytest.fixture(scope="module")
async def cloning(
    database_url: str, tmp_path_factory: pytest.TempPathFactory, repositories: GitServer
) -> AsyncIterator[Service]:
    folder: Path = tmp_path_factory.mktemp("cloning")
    common = CommonSettings(
        embedded=True,
        data_dir=folder,
        auth_url="http://127.0.0.1:9",
        outbound_allow_networks=(ip_network("127.0.0.0/8"),),
    )
    options = {"common": common, "git_ca_file": repositories.ca_file, "healthy_timeout_s": 30}
    async with running(database_url, folder, **options) as service:
        yield service


async def page(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False) as web:
        return (await web.get(url)).text


async def test_an_app_is_found_out_cloned_with_its_token_redeployed_and_rolled_back(
    cloning: Service, repositories: GitServer, remains: Remains
) -> None:
    first = repositories.commit("app", {"index.html": "one"})
    repositories.tokens["app"] = TOKEN
    user = await cloning.new_user()
    asked = {"service_types": [], "git_repo_url": repositories.repository("app"), "git_token": TOKEN}
    answer = await cloning.create(user, **asked)
    assert answer.json()["stack"]["services"] == []
    stack = await cloning.done(user, answer)
    shown = await cloning.get(user, stack["id"])
    assert (shown["service_types"], shown["primary_app_type"]) == (["static"], "static")
    assert await page(shown["url"]) == "one"

    second = repositories.commit("app", {"index.html": "two"})
    headers, path = cloning.as_user(user), f"/api/v1/stacks/{stack['id']}"
    await cloning.done(user, await cloning.http.post(f"{path}/redeploy", headers=headers))
    assert await page(shown["url"]) == "two"
    await cloning.done(user, await cloning.http.post(f"{path}/rollback", headers=headers))
    assert await page(shown["url"]) == "one"
    listed = (await cloning.http.get(f"{path}/revisions", headers=headers)).json()["items"]
    assert [one["source"]["commit"] for one in listed] == [first, second, first]
    gone = await cloning.http.post(f"{path}/redeploy", headers=headers, json={"git_ref": "no-such-branch"})
    operation = await cloning.ended(user, gone.json()["id"])
    assert operation["error"]["type"] == "/problems/git-failed"
    assert await page(shown["url"]) == "one"

    stored = str(
        cloning.rows("SELECT stacks::text FROM stacks") + cloning.rows("SELECT r::text FROM stack_revisions r")
    )
    told = str(listed) + str(await cloning.get(user, stack["id"])) + str(cloning.heard)
    assert TOKEN not in stored + told
    sealed = cloning.rows("SELECT git_credentials FROM stack_revisions WHERE stack_id = %s", stack["id"])
    assert [bool(one) for (one,) in sealed].count(True) == 3
    await cloning.act(user, stack["id"], "delete")
    assert remains(project_name(UUID(stack["id"]))) == []


async def test_a_token_is_never_sent_to_another_host(cloning: Service, repositories: GitServer) -> None:
    repositories.commit("site", {"index.html": "from git"})
    repositories.tokens["site"] = TOKEN
    user = await cloning.new_user()
    made = await cloning.create(user, git_repo_url=repositories.repository("site"), git_token=TOKEN)
    stack = await cloning.done(user, made)
    other = repositories.repository("site").replace("127.0.0.1", "127.0.0.2")
    path = f"/api/v1/stacks/{stack['id']}/redeploy"
    answer = await cloning.http.post(path, headers=cloning.as_user(user), json={"git_repo_url": other})
    assert (await cloning.ended(user, answer.json()["id"]))["state"] == "failed"
    sealed = "SELECT number FROM stack_revisions WHERE stack_id = %s AND git_credentials IS NOT NULL"
    assert cloning.rows(sealed, stack["id"]) == [(1,)]
    await cloning.act(user, stack["id"], "delete")


async def test_a_repository_that_cannot_be_had_fails_and_leaves_nothing(
    cloning: Service, repositories: GitServer, remains: Remains
) -> None:
    user = await cloning.new_user()
    repositories.commit("odd", {"README": "no app in here"})
    for fields, slug in (
        ({"git_repo_url": repositories.repository("no-such")}, "git-failed"),
        ({"git_repo_url": "https://10.0.0.1/x.git"}, "git-refused"),
        ({"git_repo_url": repositories.repository("odd"), "service_types": []}, "invalid-stack"),
    ):
        answer = await cloning.create(user, **fields)
        operation = await cloning.ended(user, answer.json()["id"])
        assert operation["error"]["type"] == f"/problems/{slug}", operation
        assert cloning.used(user) == {}
        assert cloning.folders() == []
        assert remains(project_name(UUID(answer.json()["stack"]["id"]))) == []


@pytest.mark.long
async def test_the_type_is_found_out_from_a_zip_beside_a_database(cloning: Service) -> None:
    user = await cloning.new_user(cores=3)
    code = zip_of({"index.php": "<?php echo getenv('DB_HOST');"})
    answer = await cloning.create(user, files=code, service_types="mariadb")
    stack = await cloning.done(user, answer, 90)
    shown = await cloning.get(user, stack["id"])
    assert (shown["primary_app_type"], sorted(shown["service_types"])) == ("php", ["mariadb", "php"])
    assert await page(shown["url"]) == "mariadb"
    assert cloning.used(user)["memory_mib"] == 512
    await cloning.act(user, stack["id"], "delete")
    assert cloning.used(user) == {}
