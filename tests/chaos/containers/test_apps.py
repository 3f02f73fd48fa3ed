"""Whole applications through the gateway: deployed, answering, controlled, redeployed, rolled back, deleted."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from services.containers.domain.stacks import project_name
from tests.contract.containers.git_server import GitServer
from tests.contract.containers.harness import SITE, zip_of
from tests.e2e.conftest import RunningSuite
from tests.integration.containers.conftest import remains_of

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
DEADLINE_S = 300
PHP = """<?php
$db = new mysqli(getenv('DB_HOST'), getenv('DB_USER'), getenv('DB_PASSWORD'), getenv('DB_NAME'));
$db->query('CREATE TABLE IF NOT EXISTS visits (id INT AUTO_INCREMENT PRIMARY KEY)');
$db->query('INSERT INTO visits VALUES ()');
echo 'SAID visits: ', $db->query('SELECT count(*) FROM visits')->fetch_row()[0];
"""
NODE = "require('http').createServer((_, r) => r.end('SAID')).listen(process.env.PORT)"
BUILD = "const fs = require('fs'); fs.mkdirSync('dist'); fs.writeFileSync('dist/index.html', 'SAID built');"


@dataclass
class Caller:
    """Speaks for the administrator at the gateway."""

    http: httpx.Client

    def ended(self, answer: httpx.Response) -> dict[str, Any]:
        assert answer.status_code == 202, answer.text
        until = time.monotonic() + DEADLINE_S
        while True:
            operation: dict[str, Any] = self.http.get(answer.headers["location"]).json()
            if operation["state"] not in ("pending", "running"):
                return operation
            assert time.monotonic() < until, operation
            time.sleep(0.2)

    def done(self, answer: httpx.Response) -> None:
        operation = self.ended(answer)
        assert operation["state"] == "succeeded", operation

    def act(self, stack_id: str, verb: str, **sent: Any) -> None:
        self.done(self.http.post(f"/api/v1/stacks/{stack_id}/{verb}", **sent))


@pytest.fixture(scope="module")
def caller(stacks_suite: RunningSuite, token: str) -> Iterator[Caller]:
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=stacks_suite.url, headers=headers, timeout=30, trust_env=False) as http:
        yield Caller(http)


def page(url: str) -> str:
    return httpx.get(url, trust_env=False, follow_redirects=True, timeout=30).text


def expect_life(
    caller: Caller,
    name: str,
    made: httpx.Response,
    first: str,
    change: Callable[[], dict[str, Any]] | None,
    second: str,
    folder: Path,
) -> None:
    """One stack's life; `first` and `second` are in its page before and after the change."""
    started = time.monotonic()
    caller.done(made)
    ready_s = time.monotonic() - started
    stack_id = made.json()["stack"]["id"]
    stack = caller.http.get(f"/api/v1/stacks/{stack_id}").json()
    assert (stack["state"], stack["health"]) == ("running", "healthy")
    assert first in page(stack["url"])
    assert httpx.get(stack["file_manager"]["url"], trust_env=False).status_code in (200, 401, 403)
    caller.act(stack_id, "stop")
    with pytest.raises(httpx.TransportError):
        page(stack["url"])
    caller.act(stack_id, "start")
    assert first in page(stack["url"])
    caller.act(stack_id, "restart")
    assert first in page(stack["url"])
    if change is not None:
        caller.act(stack_id, "redeploy", **change())
        assert second in page(stack["url"])
        caller.act(stack_id, "rollback")
        assert first in page(stack["url"])
    caller.done(caller.http.delete(f"/api/v1/stacks/{stack_id}"))
    assert remains_of(project_name(UUID(stack_id))) == []
    assert not (folder / UUID(stack_id).hex).exists()
    print(f"{name}: running after {ready_s:.1f} s")  # noqa: T201 - the proof's figures


def uploaded(files: dict[str, str]) -> dict[str, Any]:
    return {"files": {"zip_file": ("code.zip", zip_of(files), "application/zip")}}


def test_a_static_site_from_a_zip_by_the_older_call(caller: Caller, stacks_suite: RunningSuite) -> None:
    form = {"userid": "admin", "service_name": "site", "service_types": "Static", "admin_pass": "secret"}
    refused = caller.http.post("/service", data={**form, "git_repo_url": "https://example.org/x.git"}, **uploaded(SITE))
    assert refused.status_code == 422
    made = caller.http.post("/service", data=form, **uploaded(SITE))
    change = {"index.html": "second"}
    expect_life(caller, "static", made, "hello", lambda: uploaded(change), "second", stacks_suite.data_dir / "stacks")


def test_a_php_app_that_reads_its_database(caller: Caller, stacks_suite: RunningSuite) -> None:
    form = {"name": "php", "service_types": "php,mariadb"}
    made = caller.http.post("/api/v1/stacks", data=form, **uploaded({"index.php": PHP.replace("SAID", "one")}))
    change = {"index.php": PHP.replace("SAID", "two")}
    expect_life(
        caller, "php + mariadb", made, "one visits", lambda: uploaded(change), "two visits", _folder(stacks_suite)
    )


def test_a_nodejs_app_from_a_git_repository(
    caller: Caller, stacks_suite: RunningSuite, repositories: GitServer
) -> None:
    def commit(said: str) -> dict[str, Any]:
        package = '{"scripts": {"start": "node server.js"}}'
        repositories.commit("node", {"package.json": package, "server.js": NODE.replace("SAID", said)})
        return {}

    commit("one")
    asked = {"name": "node", "git_repo_url": repositories.repository("node")}
    made = caller.http.post("/api/v1/stacks", json=asked)
    expect_life(caller, "node.js from git", made, "one", lambda: commit("two"), "two", _folder(stacks_suite))


def test_a_react_project_that_is_built(caller: Caller, stacks_suite: RunningSuite) -> None:
    def project(said: str) -> dict[str, str]:
        package = '{"scripts": {"build": "node build.js"}}'
        return {"package.json": package, "build.js": BUILD.replace("SAID", said)}

    made = caller.http.post("/api/v1/stacks", data={"name": "r", "service_types": "React"}, **uploaded(project("one")))
    change = project("two")
    expect_life(caller, "react", made, "one built", lambda: uploaded(change), "two built", _folder(stacks_suite))


def test_wordpress(caller: Caller, stacks_suite: RunningSuite) -> None:
    made = caller.http.post("/api/v1/stacks", json={"name": "blog", "service_types": ["WordPress"]})
    change = {"json": {"variables": {"wordpress_table_prefix": "other_"}}}
    expect_life(caller, "wordpress", made, "WordPress", lambda: change, "WordPress", _folder(stacks_suite))


def _folder(suite: RunningSuite) -> Path:
    return suite.data_dir / "stacks"
