"""Runs Docker Compose v2 as a subprocess: an argument list, an empty environment, one run at a time per stack."""

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import structlog

from libs.common.errors import FieldError
from services.containers.adapters.processes import started
from services.containers.domain.compose import COMPOSE_FILE
from services.containers.errors import ComposeRefused, EngineBusy, EngineFailed, EngineUnavailable, PortTaken

_DOWN_TIMEOUT_S = 10
_RESOLVE_TIMEOUT_S = 20.0
_LOCK_WAIT_S = 20.0
_LOCK_POLL_S = 0.1
_MAX_DETAIL = 300
_MAX_OUTPUT_BYTES = 65_536
_PORT_WORDS = ("port is already allocated", "address already in use", "ports are not available")
_ABSENT_WORDS = ("cannot connect to the docker daemon", "error during connect")
_BUSY_WORDS = ("is already in use by container", "removal of container", "endpoint with name", "has active endpoints")

_log = structlog.get_logger()


class ComposeCommand:
    """Docker Compose through the `docker` command."""

    def __init__(self, docker_host: str) -> None:
        # Nothing else of this process's environment may reach a compose file.
        self._environment = {"DOCKER_HOST": docker_host, "PATH": os.environ.get("PATH", os.defpath)}
        self._environment["HOME"] = os.environ.get("HOME", "/nonexistent")

    async def up(self, project: str, folder: Path) -> None:
        await self._run(project, folder, "up", "--detach", "--no-build", "--remove-orphans", "--quiet-pull")

    async def down(self, project: str, folder: Path, *, keep_volumes: bool = False) -> None:
        if await asyncio.to_thread((folder / COMPOSE_FILE).exists):
            volumes = () if keep_volumes else ("--volumes",)
            await self._run(project, folder, "down", *volumes, "--remove-orphans", "--timeout", str(_DOWN_TIMEOUT_S))

    async def start(self, project: str, folder: Path) -> None:
        """Bring it up as its file says: a container that somebody removed comes back, too."""
        await self.up(project, folder)

    async def stop(self, project: str, folder: Path) -> None:
        await self._run(project, folder, "stop")

    async def restart(self, project: str, folder: Path) -> None:
        """Stop it and bring it up again: compose's own restart would not wait for builds and dependencies."""
        await self.stop(project, folder)
        await self.up(project, folder)

    async def resolve(self, project: str, text: str, base: Path) -> dict[str, Any]:
        options = ("--project-name", project, "--project-directory", str(base), "--file", "-")
        arguments = ("compose", *options, "--env-file", os.devnull, "--ansi", "never", "config", "--format", "json")
        try:
            piped = self._docker(*arguments, stdin=asyncio.subprocess.PIPE)
            async with asyncio.timeout(_RESOLVE_TIMEOUT_S), piped as process:
                written, said = await process.communicate(text.encode())
        except TimeoutError as error:
            raise ComposeRefused([FieldError("/compose", "the file takes too long to read")]) from error
        if process.returncode != 0:
            raise ComposeRefused([FieldError("/compose", _last_line(said.decode(errors="replace"), base))])
        resolved: dict[str, Any] = json.loads(written)
        return resolved

    async def run(self, folder: Path, *arguments: str) -> str:
        """Run another `docker` command on a folder's stack; gives what it wrote. Raises as the other calls do."""
        async with _locked(folder) as lock, self._docker(*arguments, pass_fds=(lock,)) as process:
            written, said = await process.communicate()
        if process.returncode != 0:
            raise _failure(said.decode(errors="replace"), folder)
        return written[:_MAX_OUTPUT_BYTES].decode(errors="replace")

    async def _run(self, project: str, folder: Path, *command: str) -> None:
        file = str(folder / COMPOSE_FILE)
        options = ("--project-name", project, "--project-directory", str(folder), "--file", file)
        async with _locked(folder) as lock:
            plain = ("--env-file", os.devnull, "--ansi", "never")
            output, status = await self._call(lock, "compose", *options, *plain, *command)
        if status != 0:
            _log.warning("compose_failed", project=project, command=command[0], status=status)
            raise _failure(output, folder)

    async def _call(self, lock: int, *arguments: str) -> tuple[str, int]:
        async with self._docker(*arguments, stdout=asyncio.subprocess.DEVNULL, pass_fds=(lock,)) as process:
            output = await _tail_of(process)
            return output, await process.wait()

    def _docker(self, *arguments: str, **options: Any) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        return started("docker", *arguments, environment=self._environment, missing=EngineUnavailable(), **options)


async def _tail_of(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None  # noqa: S101 - it is piped
    output = b""
    while piece := await process.stderr.read(_MAX_OUTPUT_BYTES):
        output = (output + piece)[-_MAX_OUTPUT_BYTES:]
    return output.decode(errors="replace")


@contextlib.asynccontextmanager
async def _locked(folder: Path) -> AsyncIterator[int]:
    """Lock a stack's folder; raises EngineBusy if it stays locked.

    The lock belongs to the open file, which the subprocess inherits: if this process is killed, the next one waits for
    the run that it left behind instead of working against it.
    """
    descriptor = await asyncio.to_thread(os.open, folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = asyncio.get_running_loop().time() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise EngineBusy("An earlier run of compose has not ended yet", retry_after_s=5) from error
            await asyncio.sleep(_LOCK_POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _failure(output: str, folder: Path) -> Exception:
    """What compose's last words mean, without the host's paths."""
    lower = output.lower()
    if any(known in lower for known in _PORT_WORDS):
        return PortTaken("A host port given to this stack is in use by something else on the engine's host")
    if any(known in lower for known in _ABSENT_WORDS):
        return EngineUnavailable()
    if any(known in lower for known in _BUSY_WORDS):
        return EngineBusy("The engine is still removing what was there before", retry_after_s=1)
    return EngineFailed(f"Docker: {_last_line(output, folder)}")


def _last_line(output: str, folder: Path) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    words = lines[-1] if lines else "it gave no reason"
    return words.replace(str(folder), "…")[:_MAX_DETAIL]
