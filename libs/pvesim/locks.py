"""File locks as Proxmox VE takes them: shared or exclusive, waited for with a deadline, named by the file's path."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from libs.pvesim.clock import LabClock
from libs.pvesim.errors import PveError, flock_timeout

CONFIG_WAIT_S = 10.0
CREATE_WAIT_S = 5.0
CLONE_WAIT_S = 1.0


class _Flock:
    """One lock. It is handed on in the order of asking, so that a crowd of waiters costs one wake-up each."""

    __slots__ = ("exclusive", "queue", "shared")

    def __init__(self) -> None:
        self.shared = 0
        self.exclusive = False
        self.queue: deque[tuple[asyncio.Future[None], bool]] = deque()

    @property
    def idle(self) -> bool:
        return not (self.shared or self.exclusive or self.queue)

    def take(self, *, shared: bool) -> bool:
        """Take the lock if it is free for this use."""
        if self.exclusive or (self.shared and not shared):
            return False
        if shared:
            self.shared += 1
        else:
            self.exclusive = True
        return True

    def give_back(self, *, shared: bool) -> None:
        if shared:
            self.shared -= 1
        else:
            self.exclusive = False
        self.hand_on()

    def hand_on(self) -> None:
        while self.queue:
            waiter, shared = self.queue[0]
            if not waiter.done() and not self.take(shared=shared):
                return
            self.queue.popleft()
            if not waiter.done():
                waiter.set_result(None)


class Locks:
    """All file locks of the cluster: a guest's config lock is local to its node, a shared storage's lock is not."""

    def __init__(self, clock: LabClock) -> None:
        self._clock = clock
        self._held: dict[tuple[str, str], _Flock] = {}
        self._timetable: dict[tuple[str, str], float] = {}

    def guest(
        self, node: str, vmid: int, *, shared: bool = False, wait_s: float = CONFIG_WAIT_S
    ) -> AbstractAsyncContextManager[None]:
        path = f"/var/lock/qemu-server/lock-{vmid}.conf"
        return self.hold(node, path, shared=shared, wait_s=wait_s)

    def migration(self, node: str, vmid: int) -> AbstractAsyncContextManager[None]:
        """What a migration holds, and changes of snapshots wait for."""
        path = f"/var/lock/pve-manager/pve-migrate-{vmid}"
        complaint = "Failed to obtain guest migration lock - replication running?"
        return self.hold(node, path, shared=False, wait_s=CONFIG_WAIT_S, complaint=complaint)

    async def storage_turn(self, scope: str, storage: str, seconds: float) -> None:
        """Wait for one's turn on a storage and hold it for `seconds`; `scope` is empty for shared storage.

        Turns are kept on a timetable rather than handed over, so that a busy event loop does not slow the storage down.
        Raises the `got timeout` error when the turn would come more than 10 s from now.
        """
        now = asyncio.get_running_loop().time()
        begins = max(now, self._timetable.get((scope, storage), 0.0))
        if begins - now > self._clock.real(CONFIG_WAIT_S):
            await self._clock.sleep(CONFIG_WAIT_S)
            raise flock_timeout(f"/var/lock/pve-manager/pve-storage-{storage}")
        ends = begins + self._clock.real(seconds)
        self._timetable[scope, storage] = ends
        if ends > now:
            await asyncio.sleep(ends - now)

    @asynccontextmanager
    async def hold(
        self, scope: str, path: str, *, shared: bool, wait_s: float, complaint: str | None = None
    ) -> AsyncIterator[None]:
        """Hold `path` within `scope`; raises the `got timeout` error, or the complaint, after `wait_s` lab seconds."""
        flock = self._held.setdefault((scope, path), _Flock())
        if not flock.take(shared=shared):
            try:
                await self._queue(flock, shared=shared, wait_s=wait_s)
            except TimeoutError:
                raise flock_timeout(path) if complaint is None else PveError(complaint) from None
        try:
            yield
        finally:
            flock.give_back(shared=shared)
            if flock.idle:
                self._held.pop((scope, path), None)

    async def _queue(self, flock: _Flock, *, shared: bool, wait_s: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        flock.queue.append((waiter, shared))
        try:
            async with asyncio.timeout(self._clock.real(wait_s)):
                await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                # Handed over in the same turn in which the waiting ended.
                flock.give_back(shared=shared)
            else:
                flock.queue = deque(entry for entry in flock.queue if entry[0] is not waiter)
                flock.hand_on()
            raise
