"""The inside of a guest: its files, its users, and the few programs that run there."""

import base64
import hashlib
import shlex
from collections.abc import Callable

from libs.pvesim.lab import Lab
from libs.pvesim.qemu.agent.answering import system_of
from libs.pvesim.qemu.agent.info import os_info
from libs.pvesim.qemu.agent.processes import Outcome
from libs.pvesim.qemu.model import Vm

_FOLDERS = frozenset(f"/{name}" for name in ("", "etc", "home", "opt", "root", "srv", "tmp", "usr/local/bin", "var"))
_NOT_FOUND = "No such file or directory"
_MISUSED = 2
_NO_COMMAND = 127


class GuestSystem:
    """One guest's system. Files written lie with the machine, so that they outlive its process."""

    def __init__(self, lab: Lab, vm: Vm) -> None:
        self._lab = lab
        self._vm = vm

    @property
    def frozen(self) -> bool:
        """Whether the file systems are frozen in the process that runs now."""
        return self._vm.guest.get("frozen") == self._vm.pid

    def freeze(self, *, frozen: bool) -> None:
        self._vm.guest["frozen"] = self._vm.pid if frozen else None
        self._lab.vms.save(self._vm)

    def read(self, path: str) -> bytes | None:
        """A file's bytes, None if there is none."""
        written = self._vm.guest.get("files", {}).get(path)
        if written is not None:
            return base64.b64decode(written)
        info = os_info(self._lab, self._vm)
        made = {
            "/etc/hostname": self._vm.name,
            "/etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {self._vm.name}",
            "/etc/os-release": f'PRETTY_NAME="{info["pretty-name"]}"\nID={info["id"]}\nVERSION_ID="{info["version"]}"',
        }
        return f"{made[path]}\n".encode() if path in made else None

    def write(self, path: str, content: bytes) -> bool:
        """Write a file; returns whether its folder is there."""
        if (path.rsplit("/", 1)[0] or "/") not in _FOLDERS:
            return False
        self._vm.guest.setdefault("files", {})[path] = base64.b64encode(content).decode()
        self._lab.vms.save(self._vm)
        return True

    def set_password(self, user: str, password: str) -> bool:
        """Set a user's password; returns whether there is such a user."""
        windows = system_of(self._lab, self._vm).startswith("windows")
        users = {"Administrator" if windows else "root", str(self._vm.config.get("ciuser", "root"))}
        if user not in users:
            return False
        digest = hashlib.sha256(password.encode()).hexdigest()
        self._vm.guest.setdefault("passwords", {})[user] = digest
        self._lab.vms.save(self._vm)
        return True

    def run(self, command: list[str], given: bytes) -> Outcome | None:
        """Run a program; None if there is none of that name."""
        name, arguments = command[0].rsplit("/", 1)[-1], command[1:]
        if name in {"sh", "bash"}:
            return self._shell(arguments, given)
        program = _PROGRAMS.get(name)
        return None if program is None else program(self, arguments, given)

    def _shell(self, arguments: list[str], given: bytes) -> Outcome:
        """`-c` with commands joined by `;` or `&&`, `exit N` and `kill -N $$`."""
        if arguments[:1] != ["-c"] or len(arguments) < _MISUSED:
            return Outcome(_MISUSED, err=b"sh: only -c is known here\n")
        out, err, seconds, code = b"", b"", 0.0, 0
        for part in arguments[1].replace("&&", ";").split(";"):
            words = shlex.split(part)
            if words[:1] == ["exit"]:
                return Outcome(int(words[1]) if words[1:] else code, out, err, seconds)
            if words[:1] == ["kill"] and words[-1:] == ["$$"]:
                return Outcome(0, out, err, seconds, signal=int(words[1].lstrip("-")))
            done = self.run(words, given) if words else Outcome()
            done = done or Outcome(_NO_COMMAND, err=f"sh: 1: {words[0]}: not found\n".encode())
            out, err, seconds, code = out + done.out, err + done.err, seconds + done.seconds, done.exitcode
            if code and "&&" in arguments[1]:
                break
        return Outcome(code, out, err, seconds)

    @property
    def name(self) -> str:
        return self._vm.name

    @property
    def kernel(self) -> str:
        return str(os_info(self._lab, self._vm)["kernel-release"])


def _cat(system: GuestSystem, arguments: list[str], given: bytes) -> Outcome:
    if not arguments:
        return Outcome(out=given)
    files = [(path, system.read(path)) for path in arguments]
    missing = b"".join(f"cat: {path}: {_NOT_FOUND}\n".encode() for path, content in files if content is None)
    return Outcome(int(bool(missing)), b"".join(content for _, content in files if content is not None), missing)


def _sleep(_system: GuestSystem, arguments: list[str], _given: bytes) -> Outcome:
    try:
        return Outcome(seconds=float(arguments[0]))
    except (IndexError, ValueError):
        return Outcome(1, err=b"sleep: invalid time interval\n")


_Program = Callable[[GuestSystem, list[str], bytes], Outcome]
_PROGRAMS: dict[str, _Program] = {
    "cat": _cat,
    "echo": lambda _system, arguments, _given: Outcome(out=(" ".join(arguments) + "\n").encode()),
    "false": lambda _system, _arguments, _given: Outcome(1),
    "hostname": lambda system, _arguments, _given: Outcome(out=f"{system.name}\n".encode()),
    "id": lambda _system, _arguments, _given: Outcome(out=b"uid=0(root) gid=0(root) groups=0(root)\n"),
    "sleep": _sleep,
    "true": lambda _system, _arguments, _given: Outcome(),
    "uname": lambda system, arguments, _given: Outcome(
        out=f"{system.kernel if '-r' in arguments else 'Linux'}\n".encode()
    ),
    "whoami": lambda _system, _arguments, _given: Outcome(out=b"root\n"),
}
