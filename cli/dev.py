"""`telar dev`: the gateway and all services as processes of a checkout, each started again when its files change."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog

from cli.process import stop_event
from cli.services import installed
from libs.common.logging import setup_logging
from libs.common.settings import CommonSettings

PACKAGES = ("cli", "gateway", "libs", "services")
FIRST_PORT = 8101
"""Of the services, in the order of their table; only the gateway is reached from outside."""
_LOOK_EVERY_S = 0.5
_END_WITHIN_S = 15

_log = structlog.get_logger()
Snapshot = Mapping[Path, int]


def snapshot(root: Path) -> Snapshot:
    """When each source file of the checkout was last written, in nanoseconds."""
    found = {}
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            if "__pycache__" not in path.parts and path.is_file():
                found[path.relative_to(root)] = path.stat().st_mtime_ns
    return found


def concerned(changed: Iterable[Path], names: Iterable[str]) -> set[str]:
    """Which processes run on the changed files: a service's own concern it alone, shared ones all."""
    found: set[str] = set()
    for path in changed:
        package, _, rest = path.as_posix().partition("/")
        owner = rest.partition("/")[0] if package == "services" else package
        found |= {owner} & set(names) or set(names)
    return found


class _Process:
    """One `telar serve`, after its migrations."""

    def __init__(self, name: str, host: str, port: int, environment: Mapping[str, str], root: Path) -> None:
        self.name = name
        self._serve = ("serve", name, "--host", host, "--port", str(port))
        self._environment = environment
        self._root = root
        self._running: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"dev-{self.name}")

    async def stop(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task})
        if self._running is None or self._running.returncode is not None:
            return
        self._running.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_END_WITHIN_S):
                await self._running.wait()
        except TimeoutError:
            self._running.kill()
            await self._running.wait()

    async def _run(self) -> None:
        if self.name != "gateway" and await self._ended("migrate", self.name):
            _log.error("migration_failed", service=self.name, what_to_do="change a file and it is tried again")
            return
        code = await self._ended(*self._serve)
        _log.error("process_ended", service=self.name, code=code, what_to_do="change a file and it starts again")

    async def _ended(self, *arguments: str) -> int:
        """Run the checkout's `telar` to its end; gives its exit code."""
        command = (sys.executable, "-m", "cli.main", *arguments)
        self._running = await asyncio.create_subprocess_exec(*command, env=self._environment, cwd=self._root)
        return await self._running.wait()


def _processes(root: Path, host: str, port: int) -> dict[str, _Process]:
    ports = {entry.name: number for number, entry in enumerate(installed(), FIRST_PORT)}
    urls = {name: f"http://127.0.0.1:{number}" for name, number in ports.items()}
    environment = {
        **os.environ,
        "TELAR_GATEWAY_URL": f"http://127.0.0.1:{port}",
        "TELAR_AUTH_URL": urls["auth"],
        "TELAR_VMS_IMAGES_URL": urls["images"],
        **{f"TELAR_GATEWAY_{name.upper()}_URLS": url for name, url in urls.items()},
    }
    made = {name: _Process(name, "127.0.0.1", number, environment, root) for name, number in ports.items()}
    return {"gateway": _Process("gateway", host, port, environment, root), **made}


async def run(root: Path, host: str, port: int) -> None:
    """Keep the processes of the checkout at `root` running on its newest files until SIGINT or SIGTERM."""
    setup_logging(CommonSettings())
    stop = stop_event()
    processes = _processes(root, host, port)
    seen = await asyncio.to_thread(snapshot, root)
    for process in processes.values():
        process.start()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY_S):
                await stop.wait()
        now = await asyncio.to_thread(snapshot, root)
        changed = {path for path in now.keys() | seen.keys() if now.get(path) != seen.get(path)}
        seen = now
        if changed and not stop.is_set():
            again = [processes[name] for name in sorted(concerned(changed, processes))]
            _log.info("sources_changed", files=len(changed), again=[process.name for process in again])
            await asyncio.gather(*(process.stop() for process in again))
            for process in again:
                process.start()
    await asyncio.gather(*(process.stop() for process in processes.values()))
