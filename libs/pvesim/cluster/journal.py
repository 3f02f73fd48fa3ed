"""The cluster's log: who did what on which node, newest first, in a ring that all nodes share."""

from collections import deque
from typing import Any

from libs.pvesim.clock import LabClock
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.params import integer
from libs.pvesim.store import Store
from libs.pvesim.tasks import Task

routes = Routes()
_INFO = 6
_ERROR = 3


class Journal:
    """The last entries, kept as documents. `user` is a full identity, token included."""

    def __init__(self, store: Store, clock: LabClock, loaded: dict[str, dict[str, Any]], *, lines: int) -> None:
        self._store = store
        self._clock = clock
        self._entries: deque[dict[str, Any]] = deque(sorted(loaded.values(), key=lambda entry: int(entry["uid"])))
        self._lines = lines
        self._last = int(self._entries[-1]["uid"]) if self._entries else 0

    def write(self, node: str, user: str, message: str, *, pid: int = 0, pri: int = _INFO) -> None:
        self._last += 1
        entry = {
            "uid": self._last,
            "time": self._clock.epoch(),
            "pri": pri,
            "tag": "pvedaemon",
            "pid": pid,
            "node": node,
            "user": user,
            "msg": message,
            "id": f"{self._last}:{node}",
        }
        self._entries.append(entry)
        self._store.put("journal", f"{self._last:012d}", entry)
        while len(self._entries) > self._lines:
            oldest = self._entries.popleft()
            self._store.delete("journal", f"{oldest['uid']:012d}")

    def begun(self, task: Task) -> None:
        self.write(task.node, task.authid, f"starting task {task.upid}", pid=task.pid)

    def ended(self, task: Task) -> None:
        pri = _ERROR if task.failed else _INFO
        self.write(task.node, task.authid, f"end task {task.upid} {task.exitstatus}", pid=task.pid, pri=pri)

    def newest(self, user: str | None, count: int | None) -> list[dict[str, Any]]:
        """Entries, newest first: of one identity or of all."""
        mine = [entry for entry in reversed(self._entries) if user in {None, entry["user"]}]
        return mine if count is None else mine[:count]


@routes.get("/cluster/log", {"max": integer(1)})
async def read(call: Call) -> list[dict[str, Any]]:
    """Without Sys.Syslog on `/` only the caller's own entries."""
    everything = call.allows("/", "Sys.Syslog")
    return call.lab.journal.newest(None if everything else call.identity.authid, call.get("max"))
