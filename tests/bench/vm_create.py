"""BENCH row of VMs: 200 creations at once on the simulator with tasks of a second, beside a bare proxmoxer script.

`python -m tests.bench.vm_create [machines]`. Both make the same machines with the same calls: clone, configure, grow
the disk, start, look. The script polls each of its tasks as `proxmoxer.tools` does, once a second; the service watches
all of a cluster's tasks in one list, and has its own settings but for how many operations it works on at once. The
simulator runs in a process of its own, so that it takes time from neither.
"""

import asyncio
import json
import logging
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import structlog
import uvloop
from fastapi import FastAPI
from proxmoxer import ProxmoxAPI

from cli.backends import EmbeddedPostgres
from libs.common.settings import CommonSettings
from libs.common.testing.serving import serving
from services.vms.main import create_app, migrate
from services.vms.settings import VmsSettings
from tests.contract.vms.harness import FINAL, PLENTY, user_event

MACHINES = 200
TASK_S = 1.0
TEMPLATE, SOURCE_NODE = 9001, "sv2"
NODES = ("sv1", "sv2", "sv3", "sv4", "sv5")
SIZE = {"cores": 1, "memory_mib": 256, "disk_gib": 4}
OVERHEAD_ALLOWED, CALLS_ALLOWED = 1.10, 1.2
WATCHED = ("GET /cluster/tasks", "GET /cluster/resources")
_LAB = """
import asyncio, sys, uvloop
from pathlib import Path
from libs.pvesim.app import serve
from libs.pvesim.settings import LabSettings

async def main() -> None:
    seconds = {name: float(sys.argv[2]) for name in ("qmclone", "resize", "qmstart")}
    lab = await serve(LabSettings(data_dir=Path(sys.argv[1]), port=0, task_seconds=seconds, allocation_s=0.0))
    print(lab.url, lab.fingerprint, lab.token_id, lab.token_secret.get_secret_value(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await lab.aclose()

uvloop.run(main())
"""


@contextmanager
def lab() -> Iterator[dict[str, str]]:
    """A simulator in a process of its own until the block ends; gives what opens it."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", _LAB, folder, str(TASK_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            words = process.stdout.readline().split()
            yield dict(zip(("url", "fingerprint", "token_id", "token_secret"), words, strict=True))
        finally:
            process.stdin.close()
            process.wait(30)


def calls_of(url: str) -> dict[str, int]:
    """API calls that reached the simulator since it was asked last."""
    with httpx.Client(verify=False, trust_env=False) as http:  # noqa: S501 - the simulator's own certificate
        counted: dict[str, int] = http.get(f"{url}/sim/calls").json()
        http.delete(f"{url}/sim/calls")
    return counted


def script(opened: dict[str, str], count: int) -> float:
    """What an operator's script does: a thread for each machine, each waiting for its own tasks; gives the seconds."""
    local = threading.local()
    user, _, token = opened["token_id"].partition("!")
    host = re.sub(r"^https://", "", opened["url"])

    def api() -> Any:
        if not hasattr(local, "api"):
            options = {"user": user, "token_name": token, "token_value": opened["token_secret"], "timeout": 60}
            local.api = ProxmoxAPI(host, verify_ssl=False, **options)
        return local.api

    def wait(node: str, upid: str) -> None:
        while (told := api().nodes(node).tasks(upid).status.get())["status"] == "running":
            time.sleep(1.0)
        assert told["exitstatus"] == "OK", told

    def make(number: int) -> None:
        vmid, node = 30_000 + number, NODES[number % len(NODES)]
        wish: dict[str, Any] = {"newid": vmid, "name": f"vm-{number}"}
        if node != SOURCE_NODE:
            wish["target"] = node
        wait(SOURCE_NODE, api().nodes(SOURCE_NODE).qemu(TEMPLATE).clone.post(**wish))
        machine = api().nodes(node).qemu(vmid)
        machine.config.get()
        machine.config.put(cores=SIZE["cores"], memory=SIZE["memory_mib"], tags="bench", ipconfig0="ip=dhcp")
        wait(node, machine.resize.put(disk="scsi0", size=f"{SIZE['disk_gib']}G"))
        wait(node, machine.status.start.post())
        assert machine.status.current.get()["status"] == "running"

    began = time.perf_counter()
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(make, range(count)))
    return time.perf_counter() - began


async def asked(app: FastAPI, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    """POST in the messages that a server passes on: the time of a client's library is not the service's."""
    given = {**headers, "content-type": "application/json", "content-length": str(len(body))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("vms", 80),
    }
    status, told, ended = 0, bytearray(), asyncio.Event()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        told.extend(message.get("body", b""))

    await app(scope, receive, send)
    ended.set()
    return status, bytes(told)


async def service(opened: dict[str, str], database_url: str, count: int) -> float:
    """The same by the service, asked by one client; gives the seconds from the first request to the last end."""
    cluster = {name: opened[name] for name in ("url", "fingerprint", "token_id", "token_secret")} | {"name": "lab"}
    common = CommonSettings(embedded=True, auth_url="http://127.0.0.1:9")
    chosen = VmsSettings(common=common, database_url=database_url, clusters=[cluster], operations_at_once=256)
    async with serving("vms", create_app, migrate, chosen, timeout_s=300) as served:
        await served.bus.publish(user_event("bench", **PLENTY))
        headers = served.as_user("bench")
        await served.http.get("/api/v1/templates", headers=headers)
        calls_of(opened["url"])

        async def make(number: int) -> str:
            body = {"name": f"vm-{number}", "os_type": "debian-13", **SIZE}
            status, answer = await asked(served.app, "/api/v1/vms", headers, json.dumps(body).encode())
            assert status == 202, answer
            operation: str = json.loads(answer)["id"]
            return operation

        began = time.perf_counter()
        begun = await asyncio.gather(*(make(number) for number in range(count)))
        left = set(begun)
        while left:
            await asyncio.sleep(0.25)
            rows = served.rows("SELECT id, state FROM operations WHERE kind = 'vm.create'")
            ended = {name: state for name, state in rows if state in FINAL}
            assert set(ended.values()) <= {"succeeded"}, ended
            left -= set(ended)
        return time.perf_counter() - began


def measure(count: int) -> dict[str, Any]:
    """Both, each on a fresh simulator: seconds, calls for one machine, and calls that only watch."""
    with lab() as opened:
        calls_of(opened["url"])
        script_s = script(opened, count)
        by_script = calls_of(opened["url"])
    with lab() as opened, tempfile.TemporaryDirectory() as folder:

        async def run() -> float:
            postgres = EmbeddedPostgres(Path(folder))
            await postgres.start(("vms",))
            try:
                return await service(opened, postgres.url("vms"), count)
            finally:
                await postgres.stop()

        service_s = uvloop.run(run())  # as `telar` runs services and the lab
        by_service = calls_of(opened["url"])
    watch = sum(by_service.get(name, 0) for name in WATCHED)
    return {
        "script_s": round(script_s, 2),
        "service_s": round(service_s, 2),
        "script_calls_per_vm": round(sum(by_script.values()) / count, 2),
        "service_calls_per_vm": round(sum(by_service.values()) / count, 2),
        "watch_calls": watch,
        "watch_calls_per_s": round(watch / service_s, 2),
    }


def run(count: int = MACHINES) -> dict[str, Any]:
    """The row: 200 at once, and a tenth of it to show that watching costs the same."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    few, many = measure(count // 10), measure(count)
    overhead = many["service_s"] / many["script_s"]
    ratio = many["service_calls_per_vm"] / many["script_calls_per_vm"]
    return {
        "machines": count,
        "all": many,
        "a tenth": few,
        "overhead": round(overhead, 3),
        "overhead_allowed": OVERHEAD_ALLOWED,
        "calls_ratio": round(ratio, 3),
        "calls_ratio_allowed": CALLS_ALLOWED,
        "watch_per_s_ratio": round(many["watch_calls_per_s"] / few["watch_calls_per_s"], 2),
        "holds": overhead <= OVERHEAD_ALLOWED and ratio <= CALLS_ALLOWED,
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else MACHINES), indent=2))
