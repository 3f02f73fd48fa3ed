"""The agent's calls that reach into the guest: programs, files, passwords; their failures are raised."""

import base64
import binascii
from typing import Any

from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError
from libs.pvesim.params import Param, boolean, integer, text
from libs.pvesim.qemu.agent.answering import answering
from libs.pvesim.qemu.agent.calls import agent_privilege
from libs.pvesim.qemu.agent.system import GuestSystem

routes = Routes()
_PATH = "/nodes/{node}/qemu/{vmid}/agent"
_EVERYTHING = agent_privilege()
_FILE_LIMIT = 16 * 1024**2
_INPUT_LIMIT = 64 * 1024
_WRITE_LIMIT = 60 * 1024
_NOT_FOUND = "No such file or directory"


def _agent_error(text_: str) -> PveError:
    return PveError(f"Agent error: {text_}")


async def _system(call: Call, command: str) -> GuestSystem:
    system = GuestSystem(call.lab, await answering(call))
    if system.frozen:
        raise _agent_error(f"Command guest-{command} has been disabled: the command is not allowed")
    return system


@routes.post(
    f"{_PATH}/exec",
    {"command": Param("array", required=True), "input-data": text(_INPUT_LIMIT)},
    _EVERYTHING,
)
async def execute(call: Call) -> dict[str, Any]:
    """Start a program. The list came as one text with NUL bytes before release 8."""
    system = await _system(call, "exec")
    command = call.get("command")
    if not call.lab.settings.release.lists_repeated_keys:
        command = "\0".join(command).split("\0")
    outcome = system.run(command, call.get("input-data", "").encode())
    if outcome is None:
        raise _agent_error(f"Failed to execute child process “{command[0]}” ({_NOT_FOUND})")
    return {"pid": call.lab.processes.start(call.lab.vms.by_id[call.vmid], outcome)}


@routes.get(f"{_PATH}/exec-status", {"pid": integer(required=True)}, _EVERYTHING)
async def execution_status(call: Call) -> dict[str, Any]:
    """How a program is doing; a finished one's result is told once."""
    await _system(call, "exec-status")
    status = call.lab.processes.status(call.lab.vms.by_id[call.vmid], call.get("pid"))
    if status is None:
        raise _agent_error("Invalid parameter 'pid'")
    return status


@routes.get(
    f"{_PATH}/file-read",
    {
        "file": text(required=True),
        "count": integer(1, _FILE_LIMIT, default=_FILE_LIMIT, since=(9, 1)),
        "decode": boolean(1, since=(9, 1)),
        "offset": integer(0, default=0, since=(9, 1)),
    },
    agent_privilege("FileRead"),
)
async def read_file(call: Call) -> dict[str, Any]:
    """A file's content, byte by byte as Latin-1, or in base64."""
    system = await _system(call, "file-open")
    content = system.read(call.get("file"))
    if content is None:
        raise _agent_error(f"failed to open file '{call.get('file')}' (mode: 'r'): {_NOT_FOUND}")
    start = call.get("offset", 0)
    part = content[start : start + call.get("count", _FILE_LIMIT)]
    shown = part.decode("latin-1") if call.get("decode", 1) else base64.b64encode(part).decode()
    answer: dict[str, Any] = {"content": shown, "bytes-read": len(part)}
    return answer | ({"truncated": 1} if start + len(part) < len(content) else {})


@routes.post(
    f"{_PATH}/file-write",
    {"file": text(required=True), "content": text(_WRITE_LIMIT, required=True), "encode": boolean(1)},
    agent_privilege("FileWrite"),
)
async def write_file(call: Call) -> None:
    system = await _system(call, "file-open")
    content = call.get("content").encode()
    if not call.flag("encode"):
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error as wrong:
            raise _agent_error("Invalid parameter type for 'buf-b64', expected: base64 string") from wrong
    if not system.write(call.get("file"), content):
        raise _agent_error(f"failed to open file '{call.get('file')}' (mode: 'w'): {_NOT_FOUND}")


@routes.post(
    f"{_PATH}/set-user-password",
    {
        "username": text(required=True),
        "password": text(1024, min_length=5, required=True),
        "crypted": boolean(0),
    },
    _EVERYTHING,
)
async def set_password(call: Call) -> dict[str, Any]:
    system = await _system(call, "set-user-password")
    if not system.set_password(call.get("username"), call.get("password")):
        raise _agent_error("child process has failed to set user password")
    return {"result": {}}
