"""Terminals (`termproxy`): the first line proves who is there, then typed bytes in and the screen's bytes out."""

import re
from collections.abc import Callable
from typing import Any

from libs.pvesim.console.calls import CONSOLE, SHELL, SHELL_PARAMS, open_proxy, proves
from libs.pvesim.console.websocket import Dropped, FrameStream
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError
from libs.pvesim.params import one_of
from libs.pvesim.qemu.model import Vm

routes = Routes()
_FIRST_LINE = 2048
_LENGTH_DIGITS = 8
_SERIAL = re.compile(r"serial\d")
_SERIALS = tuple(f"serial{i}" for i in range(4))


@routes.post("/nodes/{node}/qemu/{vmid}/termproxy", {"serial": one_of(*_SERIALS)}, CONSOLE, on_node=False)
async def machine_terminal(call: Call) -> dict[str, Any]:
    """A serial port's terminal. The original's tool looks the user up by name, which older releases' tokens are not."""
    lab = call.lab
    vm = lab.vms.configured(call.node, call.vmid)
    _serial_port(call, vm)
    known = not call.identity.is_token or lab.settings.release.opens_terminals_to_tokens
    prompt = f"{vm.name} login: "
    return _open(call, "vncproxy", prompt, lambda: known and lab.consoles.display(call.node, vm.vmid) is not None)


def _serial_port(call: Call, vm: Vm) -> str:
    chosen = call.get("serial") or next(iter(_SERIAL.findall(str(vm.config.get("vga", "")))), None)
    found = chosen or next((name for name in _SERIALS if name in vm.config), None)
    if found is None or found not in vm.config:
        raise PveError("unable to find a serial interface")
    return found


@routes.post("/nodes/{node}/termproxy", SHELL_PARAMS, SHELL, on_node=False)
async def shell_terminal(call: Call) -> dict[str, Any]:
    node = call.lab.nodes.known(call.node)
    known = not call.identity.is_token or call.lab.settings.release.opens_terminals_to_tokens
    return _open(call, "vncshell", f"root@{node.name}:~# ", lambda: known and node.up)


def _open(call: Call, task_type: str, prompt: str, alive: Callable[[], bool]) -> dict[str, Any]:
    proxy, answer = open_proxy(call, task_type)

    async def speak(stream: FrameStream) -> None:
        user, _, ticket = (await stream.readline(_FIRST_LINE)).decode("latin-1").rstrip("\n").partition(":")
        proven = user == call.identity.authid and proves(call, ticket, user, proxy.path, proxy.port)
        if not proven or not alive():
            raise PveError(f"command '/usr/bin/termproxy {proxy.port} --path {proxy.path}' failed: exit code 1")
        await stream.write(b"OK")
        await _converse(stream, prompt)

    proxy.speak = speak
    return answer


async def _converse(stream: FrameStream, prompt: str) -> None:
    """Echo what is typed, and prompt again after each line."""
    await stream.write(f"\r\n{prompt}".encode())
    while True:
        kind = await stream.readexactly(1)
        if kind == b"2":
            continue
        if kind == b"0":
            await stream.readexactly(1)
            typed = await stream.readexactly(await _number(stream))
            await stream.write(typed.replace(b"\r", f"\r\n{prompt}".encode()))
        elif kind == b"1":
            await stream.readexactly(1)
            await _number(stream)
            await _number(stream)
        else:
            raise Dropped("unknown terminal message")


async def _number(stream: FrameStream) -> int:
    """Decimal digits up to a colon."""
    digits = b""
    while (digit := await stream.readexactly(1)) != b":":
        digits += digit
        if not digit.isdigit() or len(digits) > _LENGTH_DIGITS:
            raise Dropped("malformed terminal message")
    return int(digits or b"0")
