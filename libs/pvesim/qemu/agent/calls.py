"""The calls of simple agent commands; their failures come inside a 200, as the agent words them."""

from collections.abc import Callable
from typing import Any

from libs.pvesim.access.permissions import Needs, needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.params import one_of
from libs.pvesim.qemu.agent.answering import answering
from libs.pvesim.qemu.agent.info import FILE_SYSTEMS, file_systems, interfaces, os_info
from libs.pvesim.qemu.agent.system import GuestSystem
from libs.pvesim.qemu.model import Config, Vm
from libs.pvesim.qemu.power_work import powered_off

routes = Routes()
_PATH = "/nodes/{node}/qemu/{vmid}/agent"
_ALLOWED_FROZEN = frozenset({"fsfreeze-freeze", "fsfreeze-status", "fsfreeze-thaw", "info", "ping"})
_SUBDIRS = (
    "exec", "exec-status", "file-read", "file-write", "fsfreeze-freeze", "fsfreeze-status", "fsfreeze-thaw", "fstrim",
    "get-fsinfo", "get-host-name", "get-memory-block-info", "get-memory-blocks", "get-osinfo", "get-time",
    "get-timezone", "get-users", "get-vcpus", "info", "network-get-interfaces", "ping", "set-user-password",
    "shutdown", "suspend-disk", "suspend-hybrid", "suspend-ram",
)  # fmt: skip


def agent_privilege(*privileges: str) -> Needs:
    """Any of these, or the privilege for everything."""
    every = (*(f"VM.GuestAgent.{name}" if "." not in name else name for name in privileges), _UNRESTRICTED)
    return needs("/vms/{vmid}", *every, any_of=True)


_UNRESTRICTED = "VM.GuestAgent.Unrestricted"
_READ = agent_privilege("Audit")
_POWER = agent_privilege("VM.PowerMgmt")
_MANAGE_FILES = agent_privilege("FileSystemMgmt")
_FREEZE_STATUS = agent_privilege("Audit", "FileSystemMgmt")


def _frozen(command: str) -> Config:
    what = f"Command guest-{command} has been disabled: the command is not allowed"
    return {"error": {"class": "CommandNotFound", "desc": what}}


def _unsupported() -> Config:
    return {"error": {"class": "CommandNotFound", "desc": "The command has not been found"}}


def _freeze(call: Call, vm: Vm, *, frozen: bool) -> int:
    system = GuestSystem(call.lab, vm)
    changed = system.frozen != frozen
    system.freeze(frozen=frozen)
    return FILE_SYSTEMS if changed else 0


def _shut_down(call: Call, vm: Vm) -> Config:
    """The guest powers itself off: no task tells of it."""
    powered_off(call.lab, vm)
    call.lab.ha.wake()
    return {}


def _sleep(call: Call, vm: Vm) -> Config:
    vm.qmp = "suspended"
    call.lab.vms.save(vm)
    return {}


_Command = Callable[[Call, Vm], Any]
_INFO: dict[str, _Command] = {
    "get-fsinfo": lambda _call, vm: file_systems(vm),
    "get-host-name": lambda _call, vm: {"host-name": vm.name},
    "get-memory-block-info": lambda _call, _vm: _unsupported(),
    "get-memory-blocks": lambda _call, _vm: _unsupported(),
    "get-osinfo": lambda call, vm: os_info(call.lab, vm),
    "get-time": lambda call, _vm: int(call.lab.clock.now() * 1e9),
    "get-timezone": lambda _call, _vm: {"zone": "UTC", "offset": 0},
    "get-users": lambda _call, _vm: [],
    "get-vcpus": lambda _call, _vm: _unsupported(),
    "info": lambda _call, _vm: {
        "version": "9.2.0",
        "supported_commands": [
            {"name": f"guest-{name}", "enabled": True, "success-response": True} for name in _SUBDIRS
        ],
    },
    "network-get-interfaces": lambda _call, vm: interfaces(vm),
}
_ACTIONS: dict[str, tuple[_Command, Needs]] = {
    "fsfreeze-freeze": (lambda call, vm: _freeze(call, vm, frozen=True), _MANAGE_FILES),
    "fsfreeze-status": (
        lambda call, vm: "frozen" if GuestSystem(call.lab, vm).frozen else "thawed",
        _FREEZE_STATUS,
    ),
    "fsfreeze-thaw": (lambda call, vm: _freeze(call, vm, frozen=False), _MANAGE_FILES),
    "fstrim": (
        lambda _call, vm: {"paths": [{"path": "/", "trimmed": vm.disk_bytes // 2, "minimum": 0}]},
        _MANAGE_FILES,
    ),
    "ping": (lambda _call, _vm: {}, _READ),
    "shutdown": (_shut_down, _POWER),
    "suspend-disk": (_shut_down, _POWER),
    "suspend-hybrid": (_sleep, _POWER),
    "suspend-ram": (_sleep, _POWER),
}
_COMMANDS: dict[str, _Command] = _INFO | {name: command for name, (command, _) in _ACTIONS.items()}


async def _result(call: Call, name: str) -> Config:
    vm = await answering(call)
    if name not in _ALLOWED_FROZEN and GuestSystem(call.lab, vm).frozen:
        return {"result": _frozen(name)}
    return {"result": _COMMANDS[name](call, vm)}


def _register(name: str) -> None:
    permission = _ACTIONS[name][1] if name in _ACTIONS else _READ
    add = routes.post if name in _ACTIONS else routes.get

    @add(f"{_PATH}/{name}", permission=permission)
    async def answer(call: Call) -> Config:
        return await _result(call, name)


for _name in _COMMANDS:
    _register(_name)


@routes.get(_PATH, open_ended=True)
async def index(call: Call) -> list[dict[str, str]]:  # noqa: ARG001  (an index is the same for every machine)
    return [{"name": name} for name in _SUBDIRS]


@routes.post(_PATH, {"command": one_of(*sorted(_COMMANDS)).must()}, needs("/vms/{vmid}", _UNRESTRICTED, any_of=True))
async def run_command(call: Call) -> Config:
    """The old form of all simple commands."""
    return await _result(call, call.get("command"))
