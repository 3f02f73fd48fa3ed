"""The files of a running stack through the API: listed, read, written, uploaded, removed, and nothing outside them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
import pytest

from tests.contract.containers.harness import Service, zip_of

pytestmark = pytest.mark.docker
CODE = {"index.html": "first", "css/site.css": "a {}", "empty/.keep": ""}


@pytest.fixture(scope="module")
async def stack(service: Service) -> AsyncIterator[dict[str, Any]]:
    user = await service.new_user()
    made = await service.done(user, await service.create(user, files=CODE))
    yield {**await service.get(user, made["id"]), "user": user}
    await service.act(user, made["id"], "delete")


def call(service: Service, stack: dict[str, Any], method: str, path: str, **sent: Any) -> Any:
    headers = {**service.as_user(stack["user"]), **sent.pop("headers", {})}
    url = f"/api/v1/stacks/{stack['id']}/files{path}"
    return service.http.request(method, url, headers=headers, **sent)


async def test_folders_are_listed_and_files_read_with_their_tag(service: Service, stack: dict[str, Any]) -> None:
    listed = (await call(service, stack, "GET", "")).json()
    assert [(one["name"], one["kind"]) for one in listed["entries"]] == [
        ("css", "folder"),
        ("empty", "folder"),
        ("index.html", "file"),
    ]
    assert (await call(service, stack, "GET", "/css")).json()["entries"][0]["size_bytes"] == 4
    answer = await call(service, stack, "GET", "/css/site.css")
    assert answer.text == "a {}"
    assert "attachment" in answer.headers["content-disposition"]
    assert "sandbox" in answer.headers["content-security-policy"]
    again = await call(service, stack, "GET", "/css/site.css", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    assert (await call(service, stack, "GET", "/no/such")).status_code == 404


async def test_what_is_written_is_served_and_a_lost_update_is_refused(service: Service, stack: dict[str, Any]) -> None:
    before = (await call(service, stack, "GET", "/index.html")).headers["etag"]
    put = await call(service, stack, "PUT", "/index.html", content=b"second", headers={"if-match": before})
    assert put.status_code == 201, put.text
    async with httpx.AsyncClient(trust_env=False) as web:
        assert (await web.get(stack["url"])).text == "second"
    stale = await call(service, stack, "PUT", "/index.html", content=b"lost", headers={"if-match": before})
    assert stale.status_code == 412
    twice = await call(service, stack, "PUT", "/index.html", content=b"x", headers={"if-none-match": "*"})
    assert twice.status_code == 412
    deep = await call(service, stack, "PUT", "/a/b/c.txt", content=b"deep")
    assert (deep.status_code, deep.json()["name"]) == (201, "c.txt")
    assert (await call(service, stack, "GET", "/a/b/c.txt")).text == "deep"
    upload = await call(service, stack, "POST", "/a/b", files={"file": ("up.bin", b"\0\1" * 70_000)})
    assert upload.status_code == 201, upload.text
    assert (await call(service, stack, "GET", "/a/b/up.bin")).content == b"\0\1" * 70_000
    root = await call(service, stack, "POST", "/", files={"file": ("root.txt", b"r")})
    assert root.status_code == 201
    assert (await call(service, stack, "DELETE", "/root.txt")).status_code == 204
    assert (await call(service, stack, "DELETE", "/a")).status_code == 409
    assert (await call(service, stack, "DELETE", "/a?recursive=true")).status_code == 204
    assert (await call(service, stack, "GET", "/a")).status_code == 404
    assert (await call(service, stack, "PUT", "/css", content=b"x")).status_code == 422
    assert (await call(service, stack, "DELETE", "/")).status_code == 422


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "C:/x", "a//b", "x\x00y", "con", "a/.", "..", "x" * 300, "a:b"],
)
async def test_paths_that_lead_elsewhere_are_refused(service: Service, stack: dict[str, Any], path: str) -> None:
    for method, sent in (("GET", {}), ("PUT", {"content": b"x"}), ("DELETE", {})):
        answer = await call(service, stack, method, f"/{quote(path, safe='').replace('.', '%2E')}", **sent)
        assert answer.status_code in (404, 405, 422), (method, answer.text)
    folder = service.settings.stacks_dir
    assert not await asyncio.to_thread((folder / UUID(stack["id"]).hex / "x").exists)


async def test_links_are_as_if_nothing_were_there(service: Service, stack: dict[str, Any]) -> None:
    code = service.settings.stacks_dir / UUID(stack["id"]).hex / "code-1"
    outside = service.settings.stacks_dir.parent / "outside"
    await asyncio.to_thread(outside.mkdir)
    await asyncio.to_thread((outside / "secret.txt").write_text, "nobody reads this")
    await asyncio.to_thread((code / "leak").symlink_to, outside / "secret.txt")
    await asyncio.to_thread((code / "way").symlink_to, outside)
    for path in ("/leak", "/way", "/way/secret.txt"):
        assert (await call(service, stack, "GET", path)).status_code == 404
        assert (await call(service, stack, "DELETE", f"{path}?recursive=true")).status_code == 404
    assert (await call(service, stack, "PUT", "/way/new.txt", content=b"x")).status_code == 404
    assert {one["name"] for one in (await call(service, stack, "GET", "")).json()["entries"]}.isdisjoint(
        {"leak", "way"}
    )
    assert (await call(service, stack, "PUT", "/leak", content=b"a file now")).status_code == 201
    assert (outside / "secret.txt").read_text() == "nobody reads this"
    await asyncio.to_thread((code / "way").unlink)
    assert sorted(path.name for path in outside.iterdir()) == ["secret.txt"]


async def test_a_body_above_the_cap_is_refused_and_leaves_nothing(service: Service, stack: dict[str, Any]) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    answer = await call(service, stack, "PUT", "/large", content=endless())
    assert answer.status_code == 413
    names = [one["name"] for one in (await call(service, stack, "GET", "")).json()["entries"]]
    assert "large" not in names
    code = service.settings.stacks_dir / UUID(stack["id"]).hex / "code-1"
    assert [path for path in await asyncio.to_thread(lambda: list(code.iterdir())) if "partial" in path.name] == []


async def test_another_owner_and_a_reading_key_change_nothing(service: Service, stack: dict[str, Any]) -> None:
    other = {**stack, "user": await service.new_user()}
    for method, path in (("GET", ""), ("GET", "/index.html"), ("PUT", "/index.html"), ("DELETE", "/index.html")):
        assert (await call(service, other, method, path)).status_code == 404
    reading = service.as_user(stack["user"], scopes=("stacks:read",))
    assert (await call(service, stack, "GET", "/index.html", headers=reading)).status_code == 200
    assert (await call(service, stack, "PUT", "/index.html", content=b"x", headers=reading)).status_code == 403


async def test_stats_and_the_log_of_one_service_are_told(service: Service, stack: dict[str, Any]) -> None:
    headers = service.as_user(stack["user"])
    path = f"/api/v1/stacks/{stack['id']}"
    (figures,) = (await service.http.get(f"{path}/stats", headers=headers)).json()["services"]
    assert figures["service"] == "static"
    assert 0 < figures["memory_bytes"] < figures["memory_limit_bytes"] == 256 << 20
    assert figures["pids"] >= 1
    async with httpx.AsyncClient(trust_env=False) as web:
        await web.get(f"{stack['url']}/?seen")
    told = (await service.http.get(f"{path}/logs?service=static", headers=headers)).text
    assert "GET /?seen" in told
    assert (await service.http.get(f"{path}/logs?service=other", headers=headers)).text.strip() == ""


async def test_code_that_grew_through_the_files_is_counted(service: Service) -> None:
    user = await service.new_user()
    made = await service.done(user, await service.create(user, name="many", files=zip_of({"a": "b"})))
    stack = {**made, "user": user}
    answers = [await call(service, stack, "PUT", f"/f{n}", content=b"x") for n in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    await service.act(user, made["id"], "delete")
