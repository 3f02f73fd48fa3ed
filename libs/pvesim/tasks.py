"""Worker tasks: UPIDs, node-local logs, exit statuses, interruption, and what a restart leaves of them."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from libs.pvesim.clock import LabClock
from libs.pvesim.errors import PveError
from libs.pvesim.faults import Faults
from libs.pvesim.store import Store

BROADCAST_PER_NODE = 25
_LOST = "unexpected status"
_FIRST_PID = 1000
_LAST_PID = 4_194_304
_logger = structlog.get_logger()


@dataclass(slots=True)
class Task:
    """One task; times are epoch seconds, `exitstatus` is None while it runs, `authid` includes a token's id."""

    upid: str
    node: str
    pid: int
    pstart: int
    starttime: int
    type: str
    id: str
    authid: str
    lines: list[str] = field(default_factory=list)
    exitstatus: str | None = None
    endtime: int | None = None
    warnings: int = 0

    def document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def failed(self) -> bool:
        return self.exitstatus is not None and self.exitstatus != "OK" and not self.exitstatus.startswith("WARNINGS")


class TaskRun:
    """A worker's handle on its task: it logs, warns, and spends simulated time in steps that faults can hit."""

    def __init__(self, task: Task, tasks: "Tasks") -> None:
        self.task = task
        self._tasks = tasks
        self._step = 0
        self.killed = False

    def log(self, line: str) -> None:
        self.task.lines.append(line)
        self._tasks.save(self.task)

    def warn(self, line: str) -> None:
        self.task.warnings += 1
        self.log(f"WARN: {line}")

    async def work(self, lab_seconds: float) -> None:
        """One step of work. Raises what an injected fault says for this step."""
        self._step += 1
        fault = self._tasks.faults.task_step(self.task.type, self.task.node, self.task.id, self._step)
        if fault is not None:
            raise PveError(fault)
        factor = self._tasks.faults.slowdown(self.task.type, self.task.node)
        await self._tasks.clock.sleep(lab_seconds * factor)


Worker = Callable[[TaskRun], Awaitable[None]]


class Tasks:
    """Every task of the cluster, by node. The newest are last; old finished ones are rotated away."""

    def __init__(
        self,
        store: Store,
        clock: LabClock,
        faults: Faults,
        *,
        archive: int,
        rng: random.Random,
        loaded: dict[str, dict[str, Any]],
    ) -> None:
        self._store = store
        self.clock = clock
        self.faults = faults
        self._archive = archive
        self._rng = rng
        self._next_pid = rng.randrange(_FIRST_PID, _LAST_PID // 2)
        self._runs: dict[str, tuple[TaskRun, asyncio.Task[None]]] = {}
        self._by_node: dict[str, dict[str, Task]] = {}
        self._finished: dict[str, deque[str]] = {}
        self.on_start: list[Callable[[Task], None]] = []
        self.on_end: list[Callable[[Task], None]] = []
        for task in sorted((Task(**document) for document in loaded.values()), key=lambda task: task.starttime):
            self._restore(task)

    def _restore(self, task: Task) -> None:
        """A task that ran when the lab died has no last line, and never gets one."""
        self._by_node.setdefault(task.node, {})[task.upid] = task
        if task.exitstatus is None:
            task.exitstatus = _LOST
            task.endtime = self.clock.epoch()
            self.save(task)
        self._finished.setdefault(task.node, deque()).append(task.upid)

    def save(self, task: Task) -> None:
        self._store.put("task", task.upid, task.document())

    def start(self, node: str, task_type: str, task_id: str, authid: str, worker: Worker) -> str:
        """Fork a worker on a node; returns its UPID at once. The worker's PveError becomes the exit status."""
        task = self._register(node, task_type, task_id, authid)
        run = TaskRun(task, self)
        self._runs[task.upid] = (run, asyncio.create_task(self._run(run, worker)))
        return task.upid

    def _register(self, node: str, task_type: str, task_id: str, authid: str) -> Task:
        self._next_pid = self._next_pid + self._rng.randrange(1, 5)
        if self._next_pid >= _LAST_PID:
            self._next_pid = _FIRST_PID
        now = self.clock.epoch()
        pstart = int(self.clock.now() * 100) & 0x7FFFFFFF
        upid = f"UPID:{node}:{self._next_pid:08X}:{pstart:08X}:{now:08X}:{task_type}:{task_id}:{authid}:"
        task = Task(upid, node, self._next_pid, pstart, now, task_type, task_id, authid)
        self._by_node.setdefault(node, {})[upid] = task
        self.save(task)
        for listener in self.on_start:
            listener(task)
        return task

    async def _run(self, run: TaskRun, worker: Worker) -> None:
        task = run.task
        try:
            text = self.faults.task_warning(task.type, task.node)
            if text is not None:
                run.warn(text)
            await worker(run)
        except PveError as failure:
            exitstatus = failure.text.replace("\n", " ").strip()
        except asyncio.CancelledError:
            exitstatus = "received interrupt"
        except Exception as defect:
            _logger.exception("lab_task_crashed", upid=task.upid)
            exitstatus = f"internal error - {type(defect).__name__}"
        else:
            exitstatus = f"WARNINGS: {task.warnings}" if task.warnings else "OK"
        self._finish(run, exitstatus)

    def _finish(self, run: TaskRun, exitstatus: str) -> None:
        task = run.task
        self._runs.pop(task.upid, None)
        task.exitstatus = _LOST if run.killed else exitstatus
        task.endtime = self.clock.epoch()
        if not run.killed:
            prefix = "ERROR: " if task.failed else ""
            task.lines.append(f"TASK {prefix}{exitstatus}")
        self.save(task)
        finished = self._finished.setdefault(task.node, deque())
        finished.append(task.upid)
        while len(finished) > self._archive:
            old = finished.popleft()
            self._by_node[task.node].pop(old, None)
            self._store.delete("task", old)
        for listener in self.on_end:
            listener(task)

    def find(self, node: str, upid: str) -> Task | None:
        return self._by_node.get(node, {}).get(upid)

    def of_node(self, node: str) -> Iterator[Task]:
        """Tasks of a node, newest first."""
        return reversed(self._by_node.get(node, {}).values())

    def broadcast(self, node: str) -> list[Task]:
        """What a node tells the cluster: all running tasks and the last finished ones."""
        running = [run.task for run, _ in self._runs.values() if run.task.node == node]
        recent = list(self._finished.get(node, ()))[-BROADCAST_PER_NODE:]
        return [*running, *(self._by_node[node][upid] for upid in reversed(recent))]

    def running(self, task_type: str, task_id: str) -> list[TaskRun]:
        return [run for run, _ in self._runs.values() if (run.task.type, run.task.id) == (task_type, task_id)]

    async def wait(self, upid: str, timeout_s: float | None = None) -> bool:
        """Wait for a task's end, at most `timeout_s` lab seconds; returns whether it has ended."""
        entry = self._runs.get(upid)
        if entry is None:
            return True
        done, _ = await asyncio.wait({entry[1]}, timeout=None if timeout_s is None else self.clock.real(timeout_s))
        return bool(done)

    async def interrupt(self, upid: str, *, kill: bool = False) -> None:
        """Stop a running task as SIGTERM does; with `kill`, as a power loss does, so that it cannot clean up."""
        entry = self._runs.get(upid)
        if entry is None:
            return
        run, job = entry
        run.killed = kill
        job.cancel()
        await asyncio.wait({job})
        if upid in self._runs:
            # Cancelled before its first turn: the coroutine never ran, so nothing else ends the task.
            self._finish(run, "received interrupt")

    async def interrupt_node(self, node: str) -> None:
        """The node lost power: all its workers die where they stand."""
        for run, _ in list(self._runs.values()):
            if run.task.node == node:
                await self.interrupt(run.task.upid, kill=True)

    async def aclose(self) -> None:
        for upid in list(self._runs):
            await self.interrupt(upid)
