"""Clones with the `git` command: https alone, one checked address, no prompts, hooks, redirects or submodules."""

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address
from pathlib import Path

import structlog

from libs.common.http import GuardedClient, OutboundError, OutboundUrl, parse
from libs.common.http.address import Address
from services.containers.adapters.processes import started
from services.containers.errors import GitFailed, GitRefused
from services.containers.ports import GitAccess

_MAX_OUTPUT_BYTES = 65_536
_MAX_DETAIL = 300
_MEMORY_BYTES = 4 * 1024**3
_COMMIT_LENGTHS = (40, 64)
_SLOW = ("http.lowSpeedLimit=1000", "http.lowSpeedTime=30")
_SAFE = (
    "protocol.allow=never",
    "protocol.https.allow=always",
    "http.followRedirects=false",
    "http.proxy=",
    "credential.helper=",
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",
    "core.fsmonitor=false",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "fetch.fsckObjects=true",
    "transfer.unpackLimit=1",  # one pack, so that the cap on files is a cap on what is fetched
    "gc.auto=0",
    "maintenance.auto=false",
    *_SLOW,
)

_log = structlog.get_logger()


class GitCommand:
    """Fetches one commit of a repository into a folder that is thrown away, and archives its tree."""

    def __init__(self, http: GuardedClient, *, timeout_s: float, max_bytes: int, ca_file: Path | None = None) -> None:
        self._http = http
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._ca_file = ca_file

    async def check(self, url: str) -> None:
        _parsed(url)

    async def archive(self, url: str, ref: str, access: GitAccess | None, path: Path) -> str:
        parsed = _parsed(url)
        try:
            _, addresses = await self._http.resolve(str(parsed))
        except OutboundError as error:
            raise GitRefused(error.detail) from error
        with _work_folder(path.parent) as folder:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._fetched(folder, parsed, addresses[0], ref, access, path)
            except TimeoutError as error:
                raise GitFailed(f"The repository was not cloned within {self._timeout_s:.0f} s") from error

    async def _fetched(
        self, folder: Path, url: OutboundUrl, address: Address, ref: str, access: GitAccess | None, path: Path
    ) -> str:
        run = _Run(folder, self._options(url, address), _credentials(access), self._max_bytes)
        await run("init", "--quiet", "--bare", "--template=", ".")
        fetching = ("fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-write-commit-graph")
        await run(*fetching, "--", str(url), ref)
        commit = (await run("rev-parse", "--verify", "--quiet", "--end-of-options", "FETCH_HEAD^{commit}")).strip()
        if len(commit) not in _COMMIT_LENGTHS:
            raise GitFailed("The repository gave no commit")
        partial = path.with_suffix(".partial")
        try:
            await run("archive", "--format=zip", "-1", f"--output={partial}", "--end-of-options", commit)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return commit

    def _options(self, url: OutboundUrl, address: Address) -> list[str]:
        pinned = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
        options = [*_SAFE, f"http.curloptResolve={url.host}:{url.port}:{pinned}"]
        if self._ca_file is not None:
            options.append(f"http.sslCAInfo={self._ca_file}")
        return [part for option in options for part in ("-c", option)]


class _Run:
    """One folder's git commands: argument lists, an environment of our own, limits on memory and files."""

    def __init__(self, folder: Path, options: Sequence[str], credentials: dict[str, str], max_bytes: int) -> None:
        self._folder = folder
        limits = (f"--fsize={max_bytes}", f"--as={_MEMORY_BYTES}", "--core=0")
        self._start = ("prlimit", *limits, "--", "git", *options)
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "LC_ALL": "C",
            "GIT_ALLOW_PROTOCOL": "https",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CEILING_DIRECTORIES": str(folder.parent),
            **credentials,
        }

    async def __call__(self, *arguments: str) -> str:
        missing = GitFailed("There is no git command where Telar runs; tell an operator")
        command = (*self._start, *arguments)
        async with started(*command, environment=self._environment, missing=missing, folder=self._folder) as process:
            written, said = await process.communicate()
        if process.returncode != 0:
            _log.warning("git_failed", command=arguments[0], status=process.returncode)
            raise _failure(said.decode(errors="replace"), process.returncode)
        return written[:_MAX_OUTPUT_BYTES].decode(errors="replace")


def _parsed(url: str) -> OutboundUrl:
    try:
        parsed = parse(url)
    except OutboundError as error:
        raise GitRefused(error.detail) from error
    if parsed.scheme != "https":
        raise GitRefused("Repositories are cloned over https only")
    return parsed


def _credentials(access: GitAccess | None) -> dict[str, str]:
    """The token as configuration from the environment: arguments are for every user of the machine to see."""
    if access is None:
        return {}
    basic = base64.b64encode(f"{access.username}:{access.token}".encode()).decode()
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "http.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
    }


@contextlib.contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="git-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _failure(output: str, status: int | None) -> GitFailed | GitRefused:
    """What git's last words mean, without what only its own log should tell."""
    lower = output.lower()
    # The process that writes the pack is ended at the cap without a word; git says only that it is gone.
    if status in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ) or "file too large" in lower or "index-pack" in lower:
        return GitRefused("The repository is too large, or what it sent is damaged")
    if "couldn't find remote ref" in lower or "not our ref" in lower or "unadvertised object" in lower:
        return GitFailed("The repository has no such branch, tag or commit (git_ref)")
    if "authentication failed" in lower or "could not read username" in lower or "terminal prompts disabled" in lower:
        return GitFailed("The repository asks for a login: send git_token, a deploy token that may read it")
    if "redirect" in lower:
        return GitFailed("The server redirects, which is not followed: give the repository's own URL")
    if "not found" in lower:
        return GitFailed("There is no such repository, or it asks for a login (git_token)")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return GitFailed(f"git: {(lines[-1] if lines else 'it gave no reason')[:_MAX_DETAIL]}")
