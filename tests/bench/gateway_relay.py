"""BENCH rows of the gateway's relay: small GETs against nginx and a naive proxy, a real service, bulk bodies."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import psutil

from libs.common.testing.ports import free_port
from tests.bench.gateway_relay_apps import access_token

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONNECTIONS = 32
BULK_BYTES = 2 * 1024**3
_BLOCK = bytes(1 << 20)


class Processes:
    """Starts what a row needs and ends exactly that."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def app(self, name: str, upstream_port: int = 0) -> tuple[int, int]:
        """Start one of the apps; its port and process id."""
        port = free_port()
        command = [sys.executable, str(HERE / "gateway_relay_apps.py"), name, str(port), str(upstream_port)]
        return port, self._start(command, port)

    def nginx(self, template: str, upstream_port: int = 0) -> int:
        port = free_port()
        text = Template((HERE / "nginx" / f"{template}.conf.template").read_text())
        conf = self._folder / f"{template}.conf"
        conf.write_text(text.substitute(folder=self._folder, port=port, upstream_port=upstream_port))
        self._start([shutil.which("nginx", path="/usr/sbin:/usr/bin") or "nginx", "-c", str(conf)], port)
        return port

    def _start(self, command: list[str], port: int) -> int:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment)  # our own programs
        self._running.append(process)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return process.pid
            if process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"{command} did not start")

    def stop(self) -> None:
        while self._running:
            process = self._running.pop()
            process.terminate()
            process.wait(15)


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    with tempfile.TemporaryDirectory() as folder:
        started = Processes(Path(folder))
        try:
            yield started
        finally:
            started.stop()


def rate(port: int, token: str, seconds: float) -> float:
    """Requests per second that wrk gets from `port`; an error among the answers ends the benchmark."""
    output = subprocess.run(  # wrk, found on PATH
        [
            shutil.which("wrk") or "wrk",
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{seconds:g}s",
            "-H",
            f"Authorization: Bearer {token}",
            f"http://127.0.0.1:{port}/api/v1/vms/1",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(output)
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if found is None:
        raise RuntimeError(output)
    return float(found[1])


def compare(ports: dict[str, int], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Rates of each, in turns: what disturbs the machine meets all of them."""
    token = access_token()
    rates: dict[str, list[float]] = {name: [] for name in ports}
    for port in ports.values():
        rate(port, token, 1)
    for _ in range(rounds):
        for name, port in ports.items():
            rates[name].append(rate(port, token, seconds))
    return rates


def ratio(rates: dict[str, list[float]], name: str, peer: str) -> float:
    """Median of the ratios of neighbours in time."""
    return statistics.median(a / b for a, b in zip(rates[name], rates[peer], strict=True))


def small_get(rounds: int, seconds: float) -> dict[str, Any]:
    with processes() as started:
        upstream = started.nginx("upstream")
        ports = {
            "nginx": started.nginx("proxy", upstream),
            "gateway": started.app("gateway", upstream)[0],
            "fastapi_httpx": started.app("naive", upstream)[0],
        }
        rates = compare(ports, rounds=rounds, seconds=seconds)
    return {
        **{f"{name}_per_s": round(statistics.median(values)) for name, values in rates.items()},
        "of_nginx": round(ratio(rates, "gateway", "nginx"), 3),
        "times_fastapi_httpx": round(ratio(rates, "gateway", "fastapi_httpx"), 1),
    }


def real_service(rounds: int, seconds: float) -> dict[str, Any]:
    with processes() as started:
        service, _ = started.app("service")
        gateway, _ = started.app("gateway", service)
        rates = compare({"alone": service, "gateway": gateway}, rounds=rounds, seconds=seconds)
    return {
        **{f"{name}_per_s": round(statistics.median(values)) for name, values in rates.items()},
        "of_alone": round(ratio(rates, "gateway", "alone"), 3),
    }


def bulk(rounds: int) -> dict[str, Any]:
    """Upload and download 2 GiB: MB/s, and by how much the gateway's resident memory grows at its peak."""
    result: dict[str, Any] = {}
    with processes() as started:
        upstream, _ = started.app("bulk")
        port, pid = started.app("gateway", upstream)
        download(port, 1 << 20)
        for name, work in (("upload", upload), ("download", download)):
            speeds, growths = [], []
            for _ in range(rounds):
                with peak_growth(pid) as growth:
                    began = time.perf_counter()
                    work(port, BULK_BYTES)
                    speeds.append(BULK_BYTES / 1e6 / (time.perf_counter() - began))
                growths.append(growth[0] / 2**20)
            result[f"{name}_mb_per_s"] = round(statistics.median(speeds))
            result[f"{name}_memory_growth_mib"] = round(max(growths), 1)
    return result


def upload(port: int, size: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    blocks = (_BLOCK for _ in range(size // len(_BLOCK)))
    headers = {"Authorization": f"Bearer {access_token()}", "Content-Length": str(size)}
    connection.request("PUT", "/api/v1/images/1", blocks, headers)
    if connection.getresponse().status != http.client.OK:
        raise RuntimeError("the upload failed")
    connection.close()


def download(port: int, size: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", f"/api/v1/images/1?bytes={size}", headers={"Authorization": f"Bearer {access_token()}"})
    response, buffer, got = connection.getresponse(), bytearray(1 << 20), 0
    while read := response.readinto(buffer):
        got += read
    if got != size:
        raise RuntimeError("the download was cut short")
    connection.close()


@contextlib.contextmanager
def peak_growth(pid: int) -> Iterator[list[int]]:
    """By how many bytes the process's resident memory exceeded its start, at most; filled in at the end."""
    process, done, growth = psutil.Process(pid), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.02):
            growth[0] = max(growth[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield growth
    finally:
        done.set()
        watcher.join()


def run(*, rounds: int = 5, seconds: float = 3) -> dict[str, Any]:
    """All rows; peers that are missing are named instead of measured."""
    missing = [tool for tool in ("nginx", "wrk") if shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin") is None]
    rows: dict[str, Any] = {}
    if missing:
        rows["missing"] = missing
    else:
        rows["gateway_small_get"] = small_get(rounds, seconds)
        rows["gateway_real_service"] = real_service(rounds, seconds)
    rows["gateway_bulk"] = bulk(min(rounds, 3))
    return rows


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
