"""Waits for a cluster's tasks: one poller for all of them, which rests while nobody waits."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog

from libs.common.tasks import cancel
from services.vms.domain.cluster import node_of, safe_upid
from services.vms.errors import NodeDown, ProxmoxFailure, ProxmoxRefused

ListTasks = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]
ReadTask = Callable[[str], Awaitable[Mapping[str, Any]]]
NodeOnline = Callable[[str], Awaitable[bool]]
_MISSES = 4
"""Rounds that a task may be missing in the list before it is asked for itself: a new one takes a moment to show."""
_AT_A_TIME = 8
_STALE_ROUNDS = 20
"""Rounds after which a task that still runs makes the poller look whether its node is alive."""

_log = structlog.get_logger()


class TaskWatch:
    """Every waiter shares the one list of the cluster's tasks.

    The list holds about 25 finished tasks per node, and nothing at all for a token without Sys.Audit: what is missing
    in it is asked for by its own status.
    """

    def __init__(self, list_tasks: ListTasks, read_task: ReadTask, online: NodeOnline, *, poll_s: float) -> None:
        self._list = list_tasks
        self._read = read_task
        self._online = online
        self._poll_s = poll_s
        self._waiting: dict[str, list[asyncio.Future[str]]] = defaultdict(list)
        self._missed: dict[str, int] = defaultdict(int)
        self._running: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._round = 0

    async def wait(self, upid: str) -> str:
        """The exit status of a task when it has ended; raises NodeDown or ProxmoxRefused if that cannot be known."""
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[safe_upid(upid)].append(waiter)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll(), name="proxmox-tasks")
        try:
            return await waiter
        finally:
            waiters = self._waiting.get(upid, [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._forget(upid)

    async def close(self) -> None:
        if self._task is not None:
            await cancel(self._task)
        for waiters in list(self._waiting.values()):
            for waiter in waiters:
                waiter.cancel()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            if not self._waiting:
                return
            try:
                await self._look()
            except ProxmoxFailure as error:
                _log.warning("tasks_not_listed", error=error.slug)
            except Exception:  # noqa: BLE001 - without the poller nobody would ever stop waiting
                _log.exception("tasks_not_listed")

    async def _look(self) -> None:
        self._round += 1
        listed = {str(item.get("upid")): item for item in await self._list()}
        missing: list[str] = []
        for upid in list(self._waiting):
            item = listed.get(upid)
            if item is None:
                self._missed[upid] += 1
                # One that was seen at work has ended, behind more others than the list keeps.
                if upid in self._running or self._missed[upid] >= _MISSES:
                    missing.append(upid)
            elif item.get("endtime") and item.get("status"):
                self._end(upid, str(item["status"]))
            else:
                self._missed.pop(upid, None)
                self._running.add(upid)
        for start in range(0, len(missing), _AT_A_TIME):
            await asyncio.gather(*(self._ask(upid) for upid in missing[start : start + _AT_A_TIME]))
        if self._round % _STALE_ROUNDS == 0:
            await self._check_nodes()

    async def _ask(self, upid: str) -> None:
        try:
            status = await self._read(upid)
        except NodeDown as error:
            self._fail(upid, error)
        except ProxmoxRefused as error:
            if "no such task" in error.reason:
                self._fail(upid, error)
        except ProxmoxFailure as error:
            _log.warning("task_not_read", error=error.slug)
        else:
            if status.get("status") == "stopped":
                self._end(upid, str(status.get("exitstatus", "unexpected status")))

    async def _check_nodes(self) -> None:
        """A dead node's tasks stay in the list as if they ran."""
        for node in {node_of(upid) for upid in self._waiting}:
            if not await self._online(node):
                for upid in [upid for upid in self._waiting if node_of(upid) == node]:
                    self._fail(upid, NodeDown(f"The node {node} went down during a task", node=node))

    def _end(self, upid: str, exitstatus: str) -> None:
        for waiter in self._forget(upid):
            if not waiter.done():
                waiter.set_result(exitstatus)

    def _fail(self, upid: str, error: Exception) -> None:
        for waiter in self._forget(upid):
            if not waiter.done():
                waiter.set_exception(error)

    def _forget(self, upid: str) -> list[asyncio.Future[str]]:
        self._missed.pop(upid, None)
        self._running.discard(upid)
        return self._waiting.pop(upid, [])
