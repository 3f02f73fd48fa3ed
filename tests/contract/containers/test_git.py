"""Cloning, against a real Git server over https: what is fetched, what is refused, what never happens."""

import asyncio
import os
import zipfile
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from libs.common.http import AddressPolicy, GuardedClient
from services.containers.adapters.git import GitCommand
from services.containers.adapters.unpacking import unpack_zip
from services.containers.domain.archives import Caps
from services.containers.errors import ArchiveRefused, GitFailed, GitRefused
from services.containers.ports import GitAccess
from tests.contract.containers.git_server import GitServer, serving_git

LOOPBACK = ip_network("127.0.0.0/8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with serving_git(tmp_path_factory.mktemp("git")) as server:
        server.commit("site", {"index.html": "<h1>first</h1>", "css/site.css": "a {}"})
        yield server


@pytest.fixture
async def git(server: GitServer) -> AsyncIterator[GitCommand]:
    async with GuardedClient(AddressPolicy([LOOPBACK])) as http:
        yield GitCommand(http, timeout_s=20, max_bytes=1_000_000, ca_file=server.ca_file)


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as zipped:
        return [name for name in zipped.namelist() if not name.endswith("/")]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_branch_a_tag_and_a_commit_are_archived(server: GitServer, git: GitCommand, tmp_path: Path) -> None:
    first = server.commit("refs", {"a.txt": "1"})
    server.run("refs", "tag", "v1")
    server.run("refs", "push", "--quiet", "origin", "v1")
    second = server.commit("refs", {"b.txt": "2"}, branch="next")
    third = server.commit("refs", {"c.txt": "3"})
    url = server.repository("refs")
    for ref, commit, name in (
        ("HEAD", third, "c.txt"),
        ("main", third, "c.txt"),
        ("next", second, "b.txt"),
        ("v1", first, "a.txt"),
        (first, first, "a.txt"),
    ):
        path = tmp_path / f"{name}-{ref[:4]}.zip"
        assert await git.archive(url, ref, None, path) == commit
        assert names(path) == [name]
    assert len(left_in(tmp_path)) == 5


async def test_a_private_repository_is_cloned_with_its_token_which_shows_nowhere(
    server: GitServer, git: GitCommand, tmp_path: Path
) -> None:
    server.commit("private", {"a.txt": "1"})
    server.tokens["private"] = "the-token"
    url = server.repository("private")
    for access in (None, GitAccess("git", "another")):
        with pytest.raises(GitFailed, match="git_token"):
            await git.archive(url, "HEAD", access, tmp_path / "x.zip")
    await git.archive(url, "HEAD", GitAccess("git", "the-token"), tmp_path / "a.zip")
    assert names(tmp_path / "a.zip") == ["a.txt"]
    assert left_in(tmp_path) == ["a.zip"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.git",
        "git://127.0.0.1/x.git",
        "ssh://git@127.0.0.1/x.git",
        "git@127.0.0.1:x.git",
        "file:///etc",
        "/etc",
        "ext::sh -c 'touch /tmp/x'",
        "-oProxyCommand=x",
        "--upload-pack=touch",
        "https://user:word@127.0.0.1/x.git",
        "https://token@127.0.0.1/x.git",
        "https://127.0.0.1:22/x.git",
        "https://a b/x.git",
    ],
)
async def test_only_https_without_a_login_in_the_url_is_cloned(git: GitCommand, tmp_path: Path, url: str) -> None:
    with pytest.raises(GitRefused):
        await git.check(url)
    with pytest.raises(GitRefused):
        await git.archive(url, "HEAD", None, tmp_path / "x.zip")


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f000001", "127.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_addresses_inside_are_not_called(server: GitServer, tmp_path: Path, host: str) -> None:
    calls, port = len(server.seen), server.url.rpartition(":")[2]
    async with GuardedClient(AddressPolicy()) as http:
        guarded = GitCommand(http, timeout_s=5, max_bytes=1_000_000, ca_file=server.ca_file)
        with pytest.raises(GitRefused):
            await guarded.archive(f"https://{host}:{port}/site.git", "HEAD", None, tmp_path / "x.zip")
    assert len(server.seen) == calls


async def test_redirects_are_not_followed(server: GitServer, git: GitCommand, tmp_path: Path) -> None:
    server.redirects["moved"] = f"{server.url}/elsewhere"
    with pytest.raises(GitFailed):
        await git.archive(server.repository("moved"), "HEAD", None, tmp_path / "x.zip")
    assert not any("elsewhere" in line for line in server.seen)


async def test_submodules_links_hooks_and_attributes_of_a_repository_do_nothing(
    server: GitServer, git: GitCommand, tmp_path: Path
) -> None:
    modules = f'[submodule "x"]\n\tpath = x\n\turl = {server.repository("secret")}\n'
    server.commit("sly", {".gitmodules": modules, ".gitattributes": "* filter=evil\n", "hooks/post-checkout": "x"})
    calls = len(server.seen)
    await git.archive(server.repository("sly"), "HEAD", None, tmp_path / "a.zip")
    assert not any("secret" in line for line in server.seen[calls:])
    assert set(names(tmp_path / "a.zip")) == {".gitmodules", ".gitattributes", "hooks/post-checkout"}


async def test_a_repository_above_the_cap_is_refused_and_leaves_nothing(
    server: GitServer, git: GitCommand, tmp_path: Path
) -> None:
    server.commit("large", {"noise": os.urandom(3_000_000)})
    with pytest.raises(GitRefused, match="too large"):
        await git.archive(server.repository("large"), "HEAD", None, tmp_path / "x.zip")
    assert left_in(tmp_path) == []


async def test_a_bomb_in_a_small_pack_is_not_unpacked(server: GitServer, git: GitCommand, tmp_path: Path) -> None:
    server.commit("bomb", {"zeros": bytes(30_000_000)})
    await git.archive(server.repository("bomb"), "HEAD", None, tmp_path / "x.zip")
    (tmp_path / "code").mkdir()
    caps = Caps(max_bytes=20_000_000, max_files=10)
    with pytest.raises(ArchiveRefused):
        unpack_zip(tmp_path / "x.zip", tmp_path / "code", caps, check_stop=lambda: None)


async def test_what_is_not_there_is_told(server: GitServer, git: GitCommand, tmp_path: Path) -> None:
    with pytest.raises(GitFailed, match="no such branch"):
        await git.archive(server.repository("site"), "no-such-branch", None, tmp_path / "x.zip")
    with pytest.raises(GitFailed, match="no such repository"):
        await git.archive(server.repository("no-such"), "HEAD", None, tmp_path / "x.zip")


async def test_a_server_that_says_nothing_is_given_up(server: GitServer, tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with GuardedClient(AddressPolicy([LOOPBACK])) as http:
        hasty = GitCommand(http, timeout_s=0.5, max_bytes=1_000_000, ca_file=server.ca_file)
        with pytest.raises(GitFailed, match="within"):
            await hasty.archive(f"https://127.0.0.1:{port}/x.git", "HEAD", None, tmp_path / "x.zip")
    listening.close()
    assert left_in(tmp_path) == []


async def test_a_certificate_that_nobody_vouches_for_is_refused(server: GitServer, tmp_path: Path) -> None:
    async with GuardedClient(AddressPolicy([LOOPBACK])) as http:
        strict = GitCommand(http, timeout_s=10, max_bytes=1_000_000)
        with pytest.raises(GitFailed, match="certificate"):
            await strict.archive(server.repository("site"), "HEAD", None, tmp_path / "x.zip")
