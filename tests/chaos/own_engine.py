"""An engine of a test's own, beside the one that everything else uses: what it does to a Swarm harms nobody."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from libs.common.testing.stack import require_engine

_DOCKER = shutil.which("docker") or "docker"
_IP = shutil.which("ip") or "ip"
_BRIDGE = "telar-test0"
_BRIDGE_ADDRESS = "172.31.254.1/24"
_START_S = 60


@contextlib.contextmanager
def own_engine(folder: Path, images: Sequence[str]) -> Iterator[str]:
    """Start a `dockerd` with all that is its own in `folder`, and the images of the first engine; gives its address.

    Needs root, `dockerd` and `ip`. The bridge is made for it: an engine that is to have none removes docker0, which is
    the first one's.
    """
    require_engine()
    address = f"unix://{folder}/docker.sock"
    command = ["dockerd", "--host", address, "--data-root", str(folder / "data"), "--exec-root", str(folder / "run")]
    command += ["--pidfile", str(folder / "pid"), "--bridge", _BRIDGE]
    with _bridge(), (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait(address, process, folder / "log")
            _copy(images, address)
            yield address
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def _bridge() -> Iterator[None]:
    subprocess.run([_IP, "link", "add", _BRIDGE, "type", "bridge"], check=True)
    try:
        subprocess.run([_IP, "address", "add", _BRIDGE_ADDRESS, "dev", _BRIDGE], check=True)
        yield
    finally:
        subprocess.run([_IP, "link", "delete", _BRIDGE], check=True)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while subprocess.run([_DOCKER, "--host", address, "version"], check=False, capture_output=True).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"dockerd does not answer: {log.read_text()[-2000:]}")
        time.sleep(0.2)


def _copy(images: Sequence[str], address: str) -> None:
    with subprocess.Popen([_DOCKER, "save", *images], stdout=subprocess.PIPE) as saved:
        subprocess.run([_DOCKER, "--host", address, "load", "--quiet"], stdin=saved.stdout, check=True)
    if saved.returncode != 0:
        raise RuntimeError("docker save failed: deploy/airgap/build.sh makes the images")
