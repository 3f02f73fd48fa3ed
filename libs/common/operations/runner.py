"""Runs a service's operations: claims them, keeps their leases alive, stops when one is lost, closes cleanly."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from libs.common.db import Notifications, drain
from libs.common.errors import TelarError, Unavailable
from libs.common.operations.errors import LeaseLost
from libs.common.operations.execution import Execution
from libs.common.operations.failures import Backoff
from libs.common.operations.model import Operation, State
from libs.common.operations.saga import Saga
from libs.common.operations.service import Operations
from libs.common.operations.store import OperationStore
from libs.common.operations.table import CANCEL, CHANNEL
from libs.common.tasks import cancel
from libs.common.telemetry import Metrics
from libs.common.uow import UnitOfWorkFactory

_log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class _Held:
    """An operation that this runner holds. `fence` cancels its task at the moment its lease runs out."""

    execution: Execution
    lease: tuple[str, str]
    task: asyncio.Task[None] = field(init=False)
    fence: asyncio.TimerHandle = field(init=False)
    lost: bool = False

    def lose(self) -> None:
        self.lost = True
        self.task.cancel()


class OperationRunner:
    """Any number of runners, on any replica, share a service's operations; none is run by two at a time.

    It holds no database connection while a step runs. `lease_s` is how long a crashed runner's operations rest.
    """

    def __init__(
        self,
        *,
        service: str,
        uow: UnitOfWorkFactory,
        notifications: Notifications,
        sagas: Sequence[Saga],
        metrics: Metrics,
        concurrency: int = 64,
        lease_s: float = 15.0,
        poll_s: float = 2.0,
        grace_s: float = 5.0,
        backoff: Backoff | None = None,
    ) -> None:
        self.operations = Operations(uow, sagas)
        self._service = service
        self._notifications = notifications
        self._sagas = {saga.kind: saga for saga in sagas}
        unbound = [saga.kind for saga in sagas if saga.at_once is None]
        bound = [([saga.kind], saga.at_once) for saga in sagas if saga.at_once is not None]
        self._claims = [(unbound, concurrency), *bound]
        self._metrics = metrics
        for kind in self._sagas:  # from 0 on: Prometheus sees no increase in a series that begins with its first one
            metrics.operations.labels(service, kind, State.NEEDS_OPERATOR)
        self._store = OperationStore(uow, lease_s=lease_s)
        self._concurrency = concurrency
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._backoff = backoff or Backoff()
        self._held: set[_Held] = set()
        self._wake = asyncio.Event()
        self._closing = False
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._closing = False
        self._loops = [
            asyncio.create_task(self._claim_on(), name=f"{self._service}-operations"),
            asyncio.create_task(self._listen(), name=f"{self._service}-operations-wake"),
            asyncio.create_task(self._renew_on(), name=f"{self._service}-operations-leases"),
        ]

    async def close(self) -> None:
        """Claim nothing more, give running steps `grace_s` to reach a boundary, break off the rest, free all leases."""
        if not self._loops:
            return
        claiming, listening, renewing = self._loops
        self._loops = []
        self._closing = True
        self._wake.set()
        await asyncio.wait({claiming}, timeout=3.0)  # not cancelled: a claim cut off in the middle keeps its lease
        await cancel(claiming, listening)
        for held in self._held:
            held.execution.stopping = True
        tasks = {held.task for held in self._held}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._grace_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=2.0)
        await cancel(renewing)
        await self._store.close()

    # Claiming

    async def _claim_on(self) -> None:
        while not self._closing:
            for kinds, at_once in self._claims:
                alike = sum(held.execution.operation.kind in kinds for held in self._held)
                room = min(at_once - alike, self._concurrency - len(self._held))
                if kinds and room > 0:
                    await self._claim(kinds, room)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._poll_s)
            self._wake.clear()

    async def _claim(self, kinds: Sequence[str], room: int) -> None:
        loop = asyncio.get_running_loop()
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(6)}"  # new each time: it fences old writes
        lease_until = loop.time() + self._lease_s
        try:
            operations = await self._store.claim(holder, kinds, room)
        except TelarError as error:
            _log.warning("operations_not_claimed", error=error.slug)
            return
        except Exception:  # noqa: BLE001 - the runner outlives any surprise; it is logged with its traceback
            _log.exception("operations_not_claimed")
            return
        for operation in operations:
            self._hold(operation, holder, lease_until)

    def _hold(self, operation: Operation, holder: str, lease_until: float) -> None:
        saga = self._sagas[operation.kind]
        held = _Held(Execution(operation, saga, self._store, self._metrics, self._backoff), (operation.id, holder))
        held.task = asyncio.create_task(self._run(held), name=operation.id)
        held.fence = asyncio.get_running_loop().call_at(lease_until, held.lose)
        self._held.add(held)
        self._count()

    async def _run(self, held: _Held) -> None:
        execution = held.execution
        try:
            await execution.run()
        except LeaseLost:
            held.lost = True
        except TelarError as error:
            _log.warning("operation_let_go", operation_id=held.lease[0], error=error.slug)
        finally:
            held.fence.cancel()
            if held.lost:
                _log.warning("operation_lease_lost", operation_id=held.lease[0])
            elif execution.leased:
                await self._release(held)
            self._held.discard(held)
            self._count()
            self._wake_later(execution.retry_in_s or 0.0)

    async def _release(self, held: _Held) -> None:
        try:
            async with asyncio.timeout(2.0):
                await self._store.release(held.lease)
        except (TelarError, TimeoutError):
            _log.warning("operation_not_released", operation_id=held.lease[0])  # its lease runs out by itself

    def _wake_later(self, delay_s: float) -> None:
        """Look again after a delay; only a hint, the tables hold the truth and the poll finds it."""
        asyncio.get_running_loop().call_later(delay_s, self._wake.set)

    def _count(self) -> None:
        self._metrics.operations_running.labels(self._service).set(len(self._held))

    # Waking

    async def _listen(self) -> None:
        with self._notifications.watch(CHANNEL) as queue:
            while True:
                payloads = set(await drain(queue, 3600))
                if "" in payloads:
                    self._wake.set()
                wanted = {payload.removeprefix(CANCEL) for payload in payloads if payload.startswith(CANCEL)}
                for held in self._held:
                    if held.lease[0] in wanted:
                        held.execution.request_cancel()

    # Leases

    async def _renew_on(self) -> None:
        while True:
            renewed = await self._renew()
            await asyncio.sleep(self._lease_s / 3 if renewed else min(0.5, self._lease_s / 15))

    async def _renew(self) -> bool:
        """Renew all leases at once; False if the database is away (then the fences fall when the leases run out)."""
        asked = [held for held in self._held if held.execution.leased]
        if not asked:
            return True
        loop = asyncio.get_running_loop()
        lease_until = loop.time() + self._lease_s
        try:
            async with asyncio.timeout(self._lease_s / 3):
                renewed = await self._store.renew([held.lease for held in asked])
        except (Unavailable, TimeoutError) as error:
            _log.warning("leases_not_renewed", error=type(error).__name__)
            return False
        except Exception:  # noqa: BLE001 - without this loop all work would stop at its fences
            _log.exception("leases_not_renewed")
            return False
        for held in asked:
            if held.task.done() or not held.execution.leased:
                continue
            if held.lease[0] not in renewed:
                held.lose()
                continue
            held.fence.cancel()
            held.fence = loop.call_at(lease_until, held.lose)
            if renewed[held.lease[0]]:
                held.execution.request_cancel()
        return True
