"""The file manager beside a stack's code, as its template has it: who gets in, what can be reached, what is kept."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from libs.common.testing.ports import free_port
from services.containers.adapters.compose import ComposeCommand
from services.containers.adapters.engine import DockerEngine
from services.containers.adapters.templates import FolderCatalog
from services.containers.domain.compose import COMPOSE_FILE, Plan, PlannedService, grants_of, labels_of, render
from services.containers.domain.policy import violations
from services.containers.domain.stacks import Limits, StackService
from tests.contract.containers.deploying import require_images
from tests.integration.containers.conftest import remains_of

pytestmark = pytest.mark.docker

PASSWORD = 'a pass: with $HOME and "quotes"'
LIMITS = Limits(cpus=1, memory_mib=128, pids=64)
ENGINE = "unix:///var/run/docker.sock"
OUTSIDE = "nobody may read this"


def plan_of(project: str, code: Path, owner: str, port: int) -> Plan:
    template = next(one for one in FolderCatalog().templates if one.name == "filemanager")
    service = StackService(template.name, template.name, template.port, port)
    values = FolderCatalog().complete(template, {"admin_pass": PASSWORD})
    return Plan(
        project=project,
        labels=labels_of("file-manager-test", "owner", 1),
        services=[PlannedService(service, template, "telar/copyparty:1.20", values)],
        primary="static",
        code_folder=str(code),
        publish_address="127.0.0.1",
        limits=LIMITS,
        build_limits=LIMITS,
        code_owner=owner,
    )


def prepare(code: Path, owner: str) -> None:
    (code / "css").mkdir(parents=True)
    (code / "index.html").write_text("<h1>before</h1>")
    (code.parent / "outside.txt").write_text(OUTSIDE)
    (code / "leak").symlink_to("../outside.txt")
    (code / "etc").symlink_to("/etc")
    uid, gid = map(int, owner.split(":"))
    for path in (code, code / "css", code / "index.html"):
        os.chown(path, uid, gid)


async def healthy(engine: DockerEngine, project: str) -> None:
    deadline = asyncio.get_running_loop().time() + 30
    while True:
        found = await engine.observe(project)
        if found and await engine.check_health(found[0].container_id):
            return
        assert asyncio.get_running_loop().time() < deadline, found
        await asyncio.sleep(0.1)


@pytest.fixture(scope="module", params=["as the service's user", "as another user"])
async def manager(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    """A running file manager: gives its URL and the code folder."""
    require_images()
    is_root = os.getuid() == 0
    owner = "1000:1000" if is_root and "another" in request.param else f"{os.getuid()}:{os.getgid()}"
    folder: Path = tmp_path_factory.mktemp("managed")
    code, port, project = folder / "code", free_port(), f"telar-{os.urandom(6).hex()}"
    prepare(code, owner)
    plan = plan_of(project, code, owner, port)
    assert violations(render(plan), grants_of(plan, LIMITS)) == []
    (folder / COMPOSE_FILE).write_text(yaml.safe_dump(render(plan)))
    compose, engine = ComposeCommand(ENGINE), DockerEngine(ENGINE, max_log_streams=1)
    try:
        await compose.up(project, folder)
        await healthy(engine, project)
        yield f"http://127.0.0.1:{port}", code
    finally:
        await compose.down(project, folder)
        await engine.close()
    assert remains_of(project) == []


def client(url: str, password: str | None = PASSWORD) -> httpx.AsyncClient:
    login = httpx.BasicAuth("admin", password) if password else None
    return httpx.AsyncClient(base_url=url, auth=login, trust_env=False)


@pytest.mark.parametrize("password", [None, "wrong", ""])
async def test_nobody_gets_in_without_the_password(manager: Any, password: str | None) -> None:
    url, code = manager
    async with client(url, password) as web:
        for path in ("/index.html", "/css/", "/leak", "/.cpr/metrics"):
            assert (await web.get(path)).status_code in (401, 403, 404), path
        shown = (await web.get("/?ls")).text
        assert "index.html" not in shown
        assert (await web.get("/?tar")).text.find("before") == -1
        assert (await web.put("/new.txt", content=b"x")).status_code in (401, 403)
        assert (await web.delete("/index.html")).status_code in (401, 403)
    assert (code / "index.html").read_text() == "<h1>before</h1>"
    assert not (code / "new.txt").exists()


async def test_the_login_form_gives_a_session_that_other_sites_cannot_use(manager: Any) -> None:
    url, _ = manager
    async with client(url, None) as web:
        form = {"act": (None, "login"), "uname": (None, "admin"), "cppwd": (None, PASSWORD)}
        answer = await web.post("/", files=form)
        assert answer.status_code == 200
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert (await web.get("/index.html")).status_code == 200


async def test_the_tree_is_listed_read_written_replaced_uploaded_downloaded_and_removed(manager: Any) -> None:
    url, code = manager
    async with client(url) as web:
        listed = (await web.get("/?ls")).json()
        assert "index.html" in {one["href"] for one in listed["files"]}
        assert "css/" in {one["href"] for one in listed["dirs"]}
        assert (await web.put("/css/site.css", content=b"h1 { color: teal }")).status_code == 201
        assert (code / "css/site.css").read_text() == "h1 { color: teal }"
        assert (await web.put("/css/site.css", content=b"h1 { color: navy }")).status_code == 201
        assert (await web.get("/css/site.css")).text == "h1 { color: navy }"
        upload = {"act": (None, "bput"), "f": ("picture.bin", b"\0\1" * 5000)}
        assert (await web.post("/css/", files=upload)).status_code == 201
        assert (code / "css/picture.bin").read_bytes() == b"\0\1" * 5000
        assert (code / "css/picture.bin").stat().st_uid == code.stat().st_uid
        assert (await web.delete("/css/picture.bin")).status_code == 200
        assert sorted(path.name for path in (code / "css").iterdir()) == ["site.css"]


@pytest.mark.parametrize(
    "path",
    [
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "/css/..%2f..%2foutside.txt",
        "/leak",
        "/etc/passwd",
        "/..%5coutside.txt",
    ],
)
async def test_nothing_outside_the_tree_is_read_or_written(manager: Any, path: str) -> None:
    url, code = manager
    port = int(url.rpartition(":")[2])
    login = httpx.BasicAuth("admin", PASSWORD)
    token = next(login.auth_flow(httpx.Request("GET", url))).headers["authorization"]
    for method, body in (("GET", b""), ("PUT", b"overwritten")):
        # By hand: a client would tidy the path up first.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
        assert OUTSIDE.encode() not in answer
        assert b"root:" not in answer
    assert (code.parent / "outside.txt").read_text() == OUTSIDE


async def test_pages_of_the_tree_run_no_scripts_with_the_managers_session(manager: Any) -> None:
    url, _ = manager
    async with client(url) as web:
        answer = await web.get("/index.html")
    assert "script-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
