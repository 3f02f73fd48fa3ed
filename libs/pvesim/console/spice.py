"""SPICE: the viewer file's fields for a machine's display and for a node's shell."""

import hashlib
import secrets
from typing import Any

from libs.pvesim.console.calls import CONSOLE, SHELL, SHELL_PARAMS, refuse_tokens
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError
from libs.pvesim.params import Param, check_dns_name
from libs.pvesim.tasks import TaskRun

routes = Routes()
_PROXY = {"proxy": Param(check=check_dns_name)}
_FIRST_PORT = 61000
_PROXY_PORT = 3128


@routes.post("/nodes/{node}/qemu/{vmid}/spiceproxy", _PROXY, CONSOLE)
async def machine_viewer(call: Call) -> dict[str, Any]:
    """The machine must run, with a display that speaks SPICE."""
    vm = call.lab.vms.configured(call.node, call.vmid)
    if not vm.running:
        raise PveError(f"VM {vm.vmid} not running")
    if not str(vm.config.get("vga", "")).startswith(("qxl", "virtio-gl", "type=qxl")):
        raise PveError("no spice port")
    return _viewer(call, f"VM {vm.vmid} - {vm.name}", str(vm.vmid))


@routes.post("/nodes/{node}/spiceshell", {**SHELL_PARAMS, **_PROXY}, SHELL)
async def shell_viewer(call: Call) -> dict[str, Any]:
    refuse_tokens(call)

    async def worker(run: TaskRun) -> None:
        await run.work(call.lab.settings.console_accept_s)
        raise PveError("connection timed out")

    call.lab.tasks.start(call.node, "spiceshell", "", call.identity.authid, worker)
    return _viewer(call, f"Shell on '{call.node}'", "0")


def _viewer(call: Call, title: str, subject: str) -> dict[str, Any]:
    lab = call.lab
    port = _FIRST_PORT + int(subject) % 1000
    place = f"pvespiceproxy:{lab.clock.epoch():08x}:{subject}:{call.node}:{port}"
    signature = hashlib.sha1(f"{place}:{secrets.token_hex(8)}".encode(), usedforsecurity=False).hexdigest()
    named = call.get("proxy") or f"{call.node}.{lab.settings.cluster_name}"
    return {
        "type": "spice",
        "title": title,
        "host": f"{place}::{signature}",
        "proxy": f"http://{named}:{_PROXY_PORT}",
        "tls-port": port,
        "host-subject": lab.certificate.subject,
        "ca": lab.certificate.pem.replace("\n", "\\n"),
        "password": secrets.token_hex(20),
        "secure-attention": "Ctrl+Alt+Ins",
        "toggle-fullscreen": "Shift+F11",
        "release-cursor": "Ctrl+Alt+R",
        "delete-this-file": 1,
    }
