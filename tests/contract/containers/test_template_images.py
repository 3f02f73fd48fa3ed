"""Every template deployed on a real engine with the images of deploy/airgap: it answers, keeps its data, and goes."""

import asyncio
import contextlib
import io
import json
import os
import socket
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
import yaml
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import OperationFailure

from services.containers.domain.compose import COMPOSE_FILE, grants_of, render
from services.containers.domain.policy import violations
from services.containers.domain.stacks import project_name
from services.containers.domain.templates import offered
from tests.contract.containers.deploying import (
    containers_of,
    deployed,
    host_port,
    log_of,
    page,
    removed,
    require_images,
)
from tests.contract.containers.harness import Service
from tests.contract.containers.plans import CATALOG, MOST, chosen, plan_of
from tests.integration.containers.conftest import remains_of

pytestmark = pytest.mark.docker

PHP_AND_SQL = """<?php
[$host, $password] = [$_GET['host'] ?? getenv('DB_HOST'), $_GET['password'] ?? getenv('DB_PASSWORD')];
try {
    $db = new mysqli($host, getenv('DB_USER'), $password, getenv('DB_NAME'));
    $db->query('CREATE TABLE IF NOT EXISTS visits (id INT AUTO_INCREMENT PRIMARY KEY)');
    $db->query('INSERT INTO visits VALUES ()');
    echo 'visits: ', $db->query('SELECT count(*) FROM visits')->fetch_row()[0];
} catch (mysqli_sql_exception $error) {
    echo $error->getMessage();
}
"""


async def test_the_file_as_compose_resolves_it_passes_the_gate_too(tmp_path: Path) -> None:
    require_images()
    plan = plan_of(chosen(*(template.name for template in offered(CATALOG.templates))), with_sidecar=True)
    file = tmp_path / COMPOSE_FILE
    await asyncio.to_thread(file.write_text, yaml.safe_dump(render(plan)))
    command = ["docker", "compose", "--file", str(file), "config"]
    environment = {"PATH": os.environ["PATH"], "HOME": "/root"}
    resolved = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, env=environment)
    assert violations(yaml.safe_load(resolved.stdout), grants_of(plan, MOST)) == []


async def test_apps_without_code_show_their_starter_pages_and_are_not_built_twice(
    deploying: Service, user: str
) -> None:
    stack = await deployed(deploying, user, "starters", service_types=["React", "Node.js", "Python"])
    assert len(stack["urls"]) == 3
    for url in stack["urls"]:
        assert "It works" in await page(url)
    await deploying.act(user, stack["id"], "restart")
    for url in stack["urls"]:
        assert "It works" in await page(url)
    for build in ("react-build", "nodejs-build", "python-build"):
        assert "has not changed since it was built" in log_of(stack, build)
    await removed(deploying, user, stack)


@pytest.mark.long
async def test_nodejs_installs_dependencies_builds_and_serves_beside_a_front_end(deploying: Service, user: str) -> None:
    package = {
        "scripts": {"build": "node -p 6*7 > answer.txt", "start": "node main.mjs"},
        "dependencies": {"greeting": "file:./greeting"},
    }
    main = """
        import { createServer } from "node:http"; import { readFileSync } from "node:fs"; import greet from "greeting";
        createServer((_, answer) => answer.end(greet(readFileSync("answer.txt", "utf8").trim())))
          .listen(process.env.PORT);
        process.on("SIGTERM", () => process.exit(0));"""
    code = {
        "nodejs/package.json": json.dumps(package),
        "nodejs/main.mjs": main,
        "nodejs/greeting/package.json": json.dumps({"name": "greeting", "version": "1.0.0", "main": "index.js"}),
        "nodejs/greeting/index.js": "module.exports = (n) => `hello ${n}`;",
        "react/package.json": json.dumps({"scripts": {"build": "mkdir -p out/assets && cp *.html *.js out"}}),
        "react/index.html": "<title>front</title>",
        "react/x.js": "1",
    }
    stack = await deployed(
        deploying, user, "both", files=code, service_types=["React", "Node.js"], primary_app_type="React"
    )
    assert_held(stack, user)
    front, back = stack["urls"]
    assert await page(front) == "<title>front</title>"
    assert await page(front + "/some/route") == "<title>front</title>"
    assert await page(front + "/x.js") == "1"
    await page(front + "/assets/none.js", status=404)
    assert await page(back) == "hello 42"
    await removed(deploying, user, stack)


async def test_python_installs_what_it_asks_for(deploying: Service, user: str) -> None:
    app = """import os, greeting, http.server, signal, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(greeting.TEXT)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.HTTPServer(("", int(os.environ["PORT"])), Page).serve_forever()
"""
    code = {
        "main.py": app,
        "requirements.txt": "./greeting-1.0-py3-none-any.whl",
        "greeting-1.0-py3-none-any.whl": wheel(),
    }
    stack = await deployed(
        deploying, user, "py", files=code, service_types="Python", variables='{"python_command": "python main.py"}'
    )
    assert await page(stack["url"]) == "hello from the wheel"
    await removed(deploying, user, stack)


def wheel() -> bytes:
    """A Python package that can be installed without any index."""
    info = "greeting-1.0.dist-info"
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as zipped:
        zipped.writestr("greeting.py", "TEXT = b'hello from the wheel'")
        zipped.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        zipped.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        zipped.writestr(f"{info}/RECORD", "")
    return written.getvalue()


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        (
            "Node.js",
            {"package.json": '{"scripts": {"build": "echo the roof is missing; exit 3"}}'},
            "the roof is missing",
        ),
        ("Node.js", {"index.js": ""}, "There is no package.json"),
        ("React", {"package.json": '{"scripts": {"build": "mkdir made"}}'}, "left no index.html"),
        ("Python", {"app.py": "", "requirements.txt": "./none.whl"}, "none.whl"),
    ],
)
async def test_a_build_that_fails_is_told_with_its_last_words_and_leaves_nothing(
    deploying: Service, user: str, kind: str, code: dict[str, str], words: str
) -> None:
    answer = await deploying.create(user, name="broken", service_types=kind, files=code)
    operation = await deploying.ended(user, answer.json()["id"], 110)
    assert operation["state"] == "failed"
    assert operation["error"]["type"] == "/problems/build-failed"
    assert words in operation["error"]["detail"]
    stack = answer.json()["stack"]
    assert words in (await deploying.get(user, stack["id"]))["reason"]
    assert remains_of(project_name(UUID(stack["id"]))) == []
    assert UUID(stack["id"]).hex not in deploying.folders()


@pytest.mark.long
async def test_databases_ask_for_their_passwords_and_keep_what_was_stored_over_a_restart(
    deploying: Service, user: str
) -> None:
    types = ["PHP", "MariaDB", "MySQL", "PostgreSQL", "Redis", "MongoDB"]
    stack = await deployed(deploying, user, "databases", service_types=types, files={"index.php": PHP_AND_SQL})
    assert_held(stack, user)
    assert {url.partition(":")[0] for url in stack["urls"]} == {"http", "mysql", "postgresql", "redis", "mongodb"}
    assert [
        value for value in stack["variables"].values() if len(str(value)) > 30 and str(value) in str(stack["urls"])
    ] == []
    for visit in (1, 2):
        if visit == 2:
            await deploying.act(user, stack["id"], "restart")
        await assert_sql(stack, visit)
        await assert_postgresql(stack, visit)
        await asyncio.to_thread(assert_redis, stack, visit)
        await assert_mongodb(stack, visit)
    await removed(deploying, user, stack)


async def assert_sql(stack: dict[str, Any], visit: int) -> None:
    """Let a PHP page count its visits: in the database it was given, and in another of the stack."""
    assert await page(stack["url"]) == f"visits: {visit}"
    password = stack["variables"]["mysql_password"]
    assert await page(f"{stack['url']}/?host=mysql&password={password}") == f"visits: {visit}"
    assert "Access denied" in await page(f"{stack['url']}/?host=mysql&password=wrong")


async def assert_postgresql(stack: dict[str, Any], visit: int) -> None:
    password = stack["variables"]["postgres_password"]
    url = f"postgresql://app:{password}@127.0.0.1:{host_port(stack, 'postgresql')}/app"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS visits (at timestamptz)")
        await connection.execute("INSERT INTO visits VALUES (now())")
        assert await (await connection.execute("SELECT count(*) FROM visits")).fetchone() == (visit,)
    with pytest.raises(psycopg.OperationalError):
        await psycopg.AsyncConnection.connect(url.replace(password, "wrong"))


def assert_redis(stack: dict[str, Any], visit: int) -> None:
    address = ("127.0.0.1", host_port(stack, "redis"))

    def say(*lines: str) -> list[str]:
        with socket.create_connection(address, timeout=5) as connection, connection.makefile("rw") as words:
            words.write("".join(f"{line}\r\n" for line in lines))
            words.flush()
            return [words.readline().strip() for _ in lines]

    assert say("INCR visits")[0].startswith("-NOAUTH")
    assert say(f"AUTH {stack['variables']['redis_password']}", "INCR visits") == ["+OK", f":{visit}"]


async def assert_mongodb(stack: dict[str, Any], visit: int) -> None:
    address = f"127.0.0.1:{host_port(stack, 'mongodb')}"
    password = stack["variables"]["mongodb_password"]
    with visits_in(f"mongodb://root:{password}@{address}/") as visits:
        await visits.insert_many([{"of": n % 2, "parts": [{"n": n}]} for n in range(10)])
        assert await visits.count_documents({"parts.n": {"$gte": 6}}) == 4 * visit
        sums = [one async for one in visits.aggregate([{"$group": {"_id": "$of", "n": {"$sum": 1}}}])]
        assert sorted((one["_id"], one["n"]) for one in sums) == [(0, 5 * visit), (1, 5 * visit)]
    for uri in (f"mongodb://root:wrong@{address}/", f"mongodb://{address}/"):
        with visits_in(uri) as visits, pytest.raises(OperationFailure, match=r"[Aa]uthentication"):
            await visits.find_one()


@contextlib.contextmanager
def visits_in(uri: str) -> Iterator[Any]:
    client: Any = AsyncIOMotorClient(uri, serverSelectionTimeoutMS=5000)
    try:
        yield client.app.visits
    finally:
        client.close()


def assert_held(stack: dict[str, Any], user: str) -> None:
    """No root, no capability, no writable root file system, and limits, but for PHP's image, which begins as root."""
    for container in containers_of(stack):
        config, host = container["Config"], container["HostConfig"]
        if "-php-" not in container["Name"]:
            assert config["User"] in ("999", "65534:65534")
            assert host["CapDrop"] == ["ALL"]
        assert host["ReadonlyRootfs"] is True
        assert host["Memory"] in (256 << 20, 2048 << 20)
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert config["Labels"]["telar.owner"] == user


@pytest.mark.long
async def test_wordpress_is_installed_into_the_database_that_it_brought(deploying: Service, user: str) -> None:
    stack = await deployed(deploying, user, "blog", service_types=["WordPress"])
    assert {service["name"] for service in stack["services"]} == {"wordpress", "mariadb"}
    form = {
        "weblog_title": "Diary of a loom",
        "user_name": "editor",
        "admin_password": "correct horse battery",
        "admin_password2": "correct horse battery",
        "admin_email": "editor@example.org",
    }
    assert "WordPress" in await page(stack["url"])
    async with httpx.AsyncClient(trust_env=False, timeout=60) as web:
        answer = await web.post(f"{stack['url']}/wp-admin/install.php?step=2", data=form)
    assert "Success!" in answer.text
    await deploying.act(user, stack["id"], "restart")
    assert "<title>Diary of a loom" in await page(stack["url"])
    await removed(deploying, user, stack)
