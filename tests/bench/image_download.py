"""BENCH rows of an image's download: by the service, through the gateway and by redirect, against nginx's sendfile."""

import asyncio
import contextlib
import http.client
import json
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from cli.backends import EmbeddedPostgres
from libs.common.testing.ports import free_port
from tests.bench.gateway_relay import Processes, access_token, peak_growth

HERE = Path(__file__).parent
LINKS_CONF = HERE.parents[1] / "deploy" / "nginx" / "image-files.conf"
GIB = 1 << 30
TARGETS = {"gateway_of_nginx": 3.0, "redirect_of_nginx": 1.2, "memory_growth_mib": 64}
_BLOCK = bytes(1 << 20)
_EDGE = "an-edge-that-no-file-has"


class Deployment(Processes):
    """Gateway, images service and nginx, each a process of its own; nginx gives out the files, signed or not."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._links_port = free_port()
        self._link_secret = secrets.token_urlsafe(32)
        self._files = folder / "images"
        self.folder = folder
        self.images_port = free_port()

    def start(self, database_url: str) -> None:
        self.gateway_port, self.gateway_pid = self.app("gateway", self.images_port)
        command = [sys.executable, str(HERE / "image_download_apps.py"), str(self.images_port)]
        command += [f"http://127.0.0.1:{self.gateway_port}", database_url, str(self.folder)]
        settings = {
            "TELAR_IMAGES_LINK_URL": f"http://127.0.0.1:{self._links_port}",
            "TELAR_IMAGES_LINK_SECRET": self._link_secret,
        }
        with patch.dict(os.environ, settings):
            self.images_pid = self._start(command, self.images_port)
        self._configure_links()
        self.nginx_port = self.nginx("files")

    def plain_path(self) -> str:
        """Where nginx has the only file that there is, for anybody."""
        (blob,) = (path for path in (self._files / "blobs").rglob("*") if path.is_file())
        return f"/{blob.relative_to(self._files)}"

    def _configure_links(self) -> None:
        text = LINKS_CONF.read_text().replace("listen 8088;", f"listen 127.0.0.1:{self._links_port};")
        text = text.replace("/var/log/nginx/", f"{self.folder}/")
        (self.folder / "image-files.conf").write_text(text)
        told = f'set $image_folder {self._files};\nset $image_link_secret "{self._link_secret}";\n'
        (self.folder / "image-files.secret").write_text(told)


@contextlib.contextmanager
def deployment() -> Iterator[Deployment]:
    """All of it in a folder of the disk (not of the memory), which is removed afterwards."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        postgres, deployed = EmbeddedPostgres(Path(name) / "postgres"), Deployment(Path(name))
        try:
            asyncio.run(postgres.start(("images",)))
            deployed.start(postgres.url("images"))
            yield deployed
        finally:
            deployed.stop()
            asyncio.run(postgres.stop())


def upload(port: int, size_bytes: int) -> str:
    """Upload a raw disk of that size; the image's id."""
    fields = "".join(
        f'--{_EDGE}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\nbench\r\n' for name in ("name", "os_type")
    )
    head = f'{fields}--{_EDGE}\r\nContent-Disposition: form-data; name="file"; filename="a.img"\r\n\r\n'.encode()
    end = f"\r\n--{_EDGE}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(size_bytes // len(_BLOCK)):
            yield _BLOCK
        yield end

    headers = {
        "Authorization": f"Bearer {access_token()}",
        "Content-Type": f"multipart/form-data; boundary={_EDGE}",
        "Content-Length": str(len(head) + size_bytes + len(end)),
    }
    deadline = time.monotonic() + 20
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/api/v1/images/upload", body(), headers)
        answer = connection.getresponse()
        document = json.loads(answer.read())
        connection.close()
        if answer.status == http.client.CREATED:
            return str(document["image"]["id"])
        if answer.status != http.client.SERVICE_UNAVAILABLE or time.monotonic() > deadline:  # not yet heard of the user
            raise RuntimeError(document)
        time.sleep(0.1)


def download(port: int, path: str, buffer: bytearray) -> int:
    """Get a file, if need be where the answer sends us; the number of its bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers={"Authorization": f"Bearer {access_token()}"})
    answer, got = connection.getresponse(), 0
    if answer.status == http.client.TEMPORARY_REDIRECT:
        url = urlsplit(answer.headers["location"])
        answer.read()
        connection.close()
        return download(url.port or port, f"{url.path}?{url.query}", buffer)
    if answer.status != http.client.OK:
        raise RuntimeError(answer.read())
    while read := answer.readinto(buffer):
        got += read
    connection.close()
    return got


def rows(*, rounds: int = 7, size_bytes: int = GIB) -> dict[str, Any]:
    """Median seconds of a download by each way, in turns, and the medians of their ratios to nginx's of that turn."""
    if shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") is None:
        return {"missing": ["nginx"]}
    buffer, load_before = bytearray(1 << 20), os.getloadavg()[0]
    with deployment() as deployed:
        path = f"/api/v1/images/{upload(deployed.images_port, size_bytes)}/download"
        ways = {
            "nginx": (deployed.nginx_port, deployed.plain_path()),
            "service": (deployed.images_port, path),
            "gateway": (deployed.gateway_port, path),
            "redirect": (deployed.gateway_port, f"{path}?redirect=true"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        with peak_growth(deployed.images_pid) as service_growth, peak_growth(deployed.gateway_pid) as gateway_growth:
            for turn in range(rounds + 1):
                for name, way in ways.items():
                    began = time.perf_counter()
                    if download(*way, buffer) != size_bytes:
                        raise RuntimeError(f"the download by way of {name} was cut short")
                    if turn:  # the first one warms up
                        seconds[name].append(time.perf_counter() - began)
    return {
        **{f"{name}_s": round(statistics.median(values), 3) for name, values in seconds.items()},
        **{
            f"{name}_of_nginx": round(
                statistics.median(mine / peer for mine, peer in zip(values, seconds["nginx"], strict=True)), 2
            )
            for name, values in seconds.items()
            if name != "nginx"
        },
        "service_memory_growth_mib": round(service_growth[0] / 2**20, 1),
        "gateway_memory_growth_mib": round(gateway_growth[0] / 2**20, 1),
        "load_before": round(load_before, 1),
        "targets": TARGETS,
    }


def run() -> dict[str, Any]:
    """The rows, as the other benchmarks give theirs."""
    return {"image_download": rows()}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
