"""BENCH row of an image's upload: 1 GiB through the gateway, beside OpenStack Glance, nginx's PUT and SHA-256 alone.

Telar stores the file durably (fsync), computes SHA-256 and SHA-512 and inspects it; Glance computes MD5 and SHA-512 and
does not sync; nginx only stores. The client sends with sendfile(2), so that it costs all of them the same little.
"""

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from typing import Any

import psutil

from libs.common.testing.ports import free_port
from tests.bench.gateway_relay import Processes, access_token, peak_growth
from tests.bench.image_download import Deployment, deployment
from tests.corpora.images import disks

HERE = Path(__file__).parent
GIB = 1 << 30
TARGET_OF_GLANCE = 1.0
TARGET_MEMORY_MIB = 64
_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
_GLANCE_PIPELINES = Path("/usr/share/glance-common/glance-api-paste.ini")
_FIELDS = "".join(
    f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\nbench\r\n' for name in ("name", "os_type")
)
_BEFORE = f'{_FIELDS}--edge\r\nContent-Disposition: form-data; name="file"; filename="a.img"\r\n\r\n'.encode()
_AFTER = b"\r\n--edge--\r\n"


class Glance:
    """Debian's glance-api on SQLite with its file store, without Keystone."""

    def __init__(self, started: Processes, folder: Path) -> None:
        home = folder / "glance"
        (home / "store").mkdir(parents=True)
        (home / "staging").mkdir()
        self._port = free_port()
        template = Template((HERE / "glance" / "glance-api.conf.template").read_text())
        conf = home / "glance-api.conf"
        conf.write_text(template.substitute(folder=home, port=self._port, paste=_GLANCE_PIPELINES))
        option = ["--config-file", str(conf)]
        subprocess.run(["glance-manage", *option, "db_sync"], check=True, capture_output=True)  # noqa: S607 - Debian's
        self.pid = started._start(["glance-api", *option], self._port)

    def upload(self, source: Path) -> None:
        body = {"name": "bench", "disk_format": "raw", "container_format": "bare"}
        _, image = call(self._port, "POST", "/v2/images", {"Content-Type": "application/json"}, json.dumps(body))
        path = f"/v2/images/{image['id']}"
        status, _ = send(self._port, "PUT", f"{path}/file", {"Content-Type": "application/octet-stream"}, source)
        if status != http.client.NO_CONTENT or call(self._port, "GET", path)[1]["status"] != "active":
            raise RuntimeError(f"Glance answered {status}")
        call(self._port, "DELETE", path)


class Nginx:
    """nginx with its DAV module: it stores what comes, and nothing else."""

    def __init__(self, started: Processes, folder: Path) -> None:
        (folder / "put").mkdir()
        self._port = started.nginx("put")

    def upload(self, source: Path) -> None:
        status, _ = send(self._port, "PUT", "/a.img", {}, source)
        if status not in (http.client.CREATED, http.client.NO_CONTENT):
            raise RuntimeError(f"nginx answered {status}")
        call(self._port, "DELETE", "/a.img")


class Telar:
    """The gateway and the images service, each a process of its own."""

    def __init__(self, deployed: Deployment) -> None:
        self.pids = (deployed.gateway_pid, deployed.images_pid)
        self._port = deployed.gateway_port

    def upload(self, source: Path) -> None:
        headers = {"Authorization": f"Bearer {access_token()}"}
        form = {**headers, "Content-Type": "multipart/form-data; boundary=edge"}
        while True:
            status, answer = send(self._port, "POST", "/api/v1/images/upload", form, source, _BEFORE, _AFTER)
            if status != http.client.SERVICE_UNAVAILABLE:  # the account arrives by event, a moment after the start
                break
        if status != http.client.CREATED:
            raise RuntimeError(answer)
        call(self._port, "DELETE", f"/api/v1/images/{answer['image']['id']}", headers)


def call(
    port: int, method: str, path: str, headers: dict[str, str] | None = None, body: str | None = None
) -> tuple[int, Any]:
    """A small request; gives its status and JSON answer, if there is one."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content.startswith(b"{") else None


def send(
    port: int,
    method: str,
    path: str,
    headers: dict[str, str],
    source: Path,
    before: bytes = b"",
    after: bytes = b"",
) -> tuple[int, Any]:
    """Send a file, with some bytes around it."""
    length = len(before) + source.stat().st_size + len(after)
    fields = {"Host": "bench", "Connection": "close", "Content-Length": str(length), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with socket.create_connection(("127.0.0.1", port)) as connection, source.open("rb") as file:
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + before)
        with contextlib.suppress(ConnectionError):  # refused meanwhile: the answer says why
            connection.sendfile(file)
            connection.sendall(after)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        content = answer.read()
    return answer.status, json.loads(content) if content.startswith(b"{") else None


def sha256_alone(source: Path) -> None:
    with source.open("rb") as file:
        hashlib.file_digest(file, "sha256")


@contextlib.contextmanager
def source_file(size_bytes: int) -> Iterator[Path]:
    """A raw disk of that size in memory, if the machine has a file system there."""
    folder = Path("/dev/shm" if shutil.disk_usage("/dev/shm").free > 2 * size_bytes else "/var/tmp")  # noqa: S108
    path = folder / f"telar-bench-{os.getpid()}.img"
    block = os.urandom(1 << 20)
    try:
        with path.open("wb") as file:
            file.write(disks.mbr_disk(len(block)))
            for _ in range(size_bytes // len(block) - 1):
                file.write(block)
        yield path
    finally:
        path.unlink(missing_ok=True)


def cpu_s(pids: tuple[int, ...]) -> float:
    """Processor time that processes and their children have taken."""
    family = [one for pid in pids for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    return sum(sum(one.cpu_times()[:2]) for one in family)


def measure(works: dict[str, Callable[[Path], None]], source: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turns: what disturbs the machine meets all of them; nobody writes back another's pages."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            os.sync()
            began = time.perf_counter()
            work(source)
            if number:  # the first turn warms them up
                seconds[name].append(time.perf_counter() - began)
    return seconds


def peers(deployed: Deployment) -> tuple[dict[str, Callable[[Path], None]], dict[str, str], tuple[int, ...]]:
    """Those that can be had, what to install for the others, and Glance's process."""
    found: dict[str, Callable[[Path], None]] = {}
    missing: dict[str, str] = {}
    glance_pids: tuple[int, ...] = ()
    if shutil.which("glance-api") and shutil.which("glance-manage") and _GLANCE_PIPELINES.exists():
        glance = Glance(deployed, deployed.folder)
        found["glance"], glance_pids = glance.upload, (glance.pid,)
    else:
        missing["glance"] = "apt-get install --no-install-recommends glance-api"
    nginx = shutil.which("nginx", path=_PATH)
    if nginx and "http_dav_module" in subprocess.run([nginx, "-V"], check=True, capture_output=True, text=True).stderr:
        found["nginx_put"] = Nginx(deployed, deployed.folder).upload
    else:
        missing["nginx_put"] = "apt-get install nginx-light (with its DAV module)"
    return found, missing, glance_pids


def run(*, rounds: int = 5, size_bytes: int = GIB) -> dict[str, Any]:
    """The row; a peer that cannot be had is named with what to install instead of measured."""
    with deployment() as deployed, source_file(size_bytes) as source:
        telar = Telar(deployed)
        found, missing, glance_pids = peers(deployed)
        seconds = measure({"telar": telar.upload, **found, "sha256_alone": sha256_alone}, source, rounds)
        row: dict[str, Any] = {f"{name}_s": round(statistics.median(values), 2) for name, values in seconds.items()}
        for peer in ("glance", "nginx_put", "sha256_alone"):
            if peer in seconds:
                pairs = zip(seconds["telar"], seconds[peer], strict=True)
                row[f"of_{peer}"] = round(statistics.median(ours / theirs for ours, theirs in pairs), 2)
        with peak_growth(telar.pids[0]) as gateway, peak_growth(telar.pids[1]) as service:
            before = cpu_s(telar.pids)
            telar.upload(source)
            row["telar_cpu_s"] = round(cpu_s(telar.pids) - before, 2)
        if glance_pids:
            before = cpu_s(glance_pids)
            found["glance"](source)
            row["glance_cpu_s"] = round(cpu_s(glance_pids) - before, 2)
        row |= {"gateway_memory_growth_mib": gateway[0] >> 20, "service_memory_growth_mib": service[0] >> 20}
    row |= {"target_of_glance": TARGET_OF_GLANCE, "target_memory_growth_mib": TARGET_MEMORY_MIB}
    if missing:
        row["missing"] = missing
    return {"image_upload_1_gib" if size_bytes == GIB else f"image_upload_{size_bytes}_bytes": row}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
