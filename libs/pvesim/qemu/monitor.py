"""Talking to a machine's process: keys sent to its keyboard, and the human monitor."""

import re

from libs.pvesim.access.permissions import Since, needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, only_root
from libs.pvesim.params import boolean, text
from libs.pvesim.qemu.model import Vm

routes = Routes()
_PATH = "/nodes/{node}/qemu/{vmid}"
_KEYS = re.compile(r"[a-z0-9_]+(-[a-z0-9_]+)*")


def _running(call: Call) -> Vm:
    vm = call.lab.vms.located(call.node, call.vmid)
    if not vm.running:
        raise PveError(f"VM {vm.vmid} not running")
    return vm


@routes.put(f"{_PATH}/sendkey", {"key": text(required=True), "skiplock": boolean()}, needs("/vms/{vmid}", "VM.Console"))
async def send_key(call: Call) -> None:
    """Press keys in QEMU's notation, `ctrl-alt-delete`; whoever looks at the display sees them."""
    lab = call.lab
    if call.flag("skiplock") and not lab.access.is_root(call.identity.authid):
        raise only_root("skiplock")
    vm = _running(call)
    async with lab.locks.guest(vm.node, vm.vmid):
        if not call.flag("skiplock"):
            vm.check_lock()
        if _KEYS.fullmatch(call.get("key")) is None:
            raise PveError(f"invalid parameter: {call.get('key')}")
        display = lab.consoles.display(vm.node, vm.vmid)
        if display is not None:
            display.press(call.get("key"))


@routes.post(
    f"{_PATH}/monitor",
    {"command": text(required=True)},
    Since((9,), needs("/vms/{vmid}", "Sys.Audit", "Sys.Modify", any_of=True), needs("/vms/{vmid}", "VM.Monitor")),
)
async def monitor(call: Call) -> str:
    vm = _running(call)
    answers = {
        "info status": f"VM status: {vm.qmp}",
        "info name": vm.name,
        "info uuid": str(vm.config.get("smbios1", "")).removeprefix("uuid="),
        "info version": "10.1.2 (pve-qemu-kvm)",
    }
    command = " ".join(call.get("command").split())
    return answers.get(command, f"unknown command: '{command}'") + "\r\n"
