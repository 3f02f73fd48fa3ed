"""MongoDB-compatible servers for tests, each a process of its own."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from libs.common.testing.ports import free_port

WIRE = Path(__file__).parents[3] / "cli" / "mongo_wire.py"
LAUNCHER = Path(__file__).parents[3] / "deploy" / "local" / "mongo-java-server" / "Launcher.java"
_CACHE = Path(
    os.environ.get("TELAR_TEST_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "telar-tests"
)
JARS = _CACHE / "mongo-java-server-1.47.0" / "jars"
_START_S = 60


@contextlib.contextmanager
def nx_27017(folder: Path, *, port: int | None = None) -> Iterator[str]:
    """The URI of the wire-compatible server on SQLite that `telar up` starts, whose data lies in the folder."""
    port = port or free_port()
    folder.mkdir(exist_ok=True)
    files = ["--data-dir", str(folder / "data"), "--pid-file", str(folder / "pid"), "--log-file", str(folder / "log")]
    with _served([sys.executable, "-I", str(WIRE), "-p", str(port), *files], port) as uri:
        yield uri


def missing_for_java() -> str | None:
    """What mongo-java-server needs and is not here."""
    if shutil.which("java") is None:
        return "a JDK"
    return None if (JARS / "h2-2.3.232.jar").is_file() else "its jars"


@contextlib.contextmanager
def mongo_java_server(folder: Path) -> Iterator[str]:
    """The URI of mongo-java-server over an H2 file in the folder."""
    port = free_port()
    command = ["java", "-cp", f"{JARS}/*", str(LAUNCHER), str(port), str(folder / "store.mv")]
    with _served(command, port) as uri:
        yield uri


@contextlib.contextmanager
def _served(command: Sequence[str], port: int) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield f"mongodb://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server on port {port} did not start (exit code {process.poll()})")
        time.sleep(0.02)
