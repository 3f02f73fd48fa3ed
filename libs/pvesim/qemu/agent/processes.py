"""Programs that the agent started: running until their time is over, forgotten once their result was read."""

from dataclasses import dataclass
from typing import Any

from libs.pvesim.clock import LabClock
from libs.pvesim.qemu.model import Vm

OUTPUT_LIMIT = 16 * 1024**2
_FIRST_PID = 700


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended, and after how many lab seconds."""

    exitcode: int = 0
    out: bytes = b""
    err: bytes = b""
    seconds: float = 0.0
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class _Process:
    ends: float
    outcome: Outcome


class Processes:
    """Processes by machine. A machine that was started anew has none."""

    def __init__(self, clock: LabClock) -> None:
        self._clock = clock
        self._by_vm: dict[int, tuple[int | None, dict[int, _Process]]] = {}
        self._last_pid = _FIRST_PID

    def start(self, vm: Vm, outcome: Outcome) -> int:
        self._last_pid += 1
        ends = self._clock.now() + self._clock.real(outcome.seconds)
        self._of(vm)[self._last_pid] = _Process(ends, outcome)
        return self._last_pid

    def status(self, vm: Vm, pid: int) -> dict[str, Any] | None:
        """What exec-status answers; None for a process that is unknown or whose result was read before."""
        process = self._of(vm).get(pid)
        if process is None:
            return None
        if self._clock.now() < process.ends:
            return {"exited": 0}
        del self._of(vm)[pid]
        outcome = process.outcome
        ended = {"exitcode": outcome.exitcode} if outcome.signal is None else {"signal": outcome.signal}
        status: dict[str, Any] = {"exited": 1, **ended}
        for name, data in (("out", outcome.out), ("err", outcome.err)):
            if data:
                status[f"{name}-data"] = data[:OUTPUT_LIMIT].decode("latin-1")
            if len(data) > OUTPUT_LIMIT:
                status[f"{name}-truncated"] = 1
        return status

    def _of(self, vm: Vm) -> dict[int, _Process]:
        qemu, processes = self._by_vm.get(vm.vmid, (None, {}))
        if qemu != vm.pid:
            processes = {}
        self._by_vm[vm.vmid] = (vm.pid, processes)
        return processes
