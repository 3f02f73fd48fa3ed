"""Calls to one cluster's API: proxmoxer in worker threads, each with a connection of its own."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from proxmoxer import ProxmoxResource
from proxmoxer.backends.https import JsonSerializer
from proxmoxer.core import ResourceException

from services.vms.adapters.proxmox.breaker import Breakers
from services.vms.adapters.proxmox.connection import Connection, NotConnected, NotTrusted, Unanswered, trust
from services.vms.adapters.proxmox.failures import LOST, SILENCE, call_failure, unanswered
from services.vms.errors import ProxmoxFailure, ProxmoxUnavailable
from services.vms.settings import ClusterSettings

T = TypeVar("T")
_PARTING_S = 1.0
_SERIALIZER = JsonSerializer()


class Session:
    """The API of one cluster. Failures are raised as `services.vms.errors` say."""

    def __init__(
        self, cluster: ClusterSettings, *, timeout_s: float, connections: int, breakers: Breakers | None = None
    ) -> None:
        logging.getLogger("proxmoxer").setLevel(logging.WARNING)  # it logs the data of every POST at INFO
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._breakers = breakers
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix=f"proxmox-{cluster.name}")
        self._trusted = trust(cluster)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._closed = False
        self._under_way: set[Future[Any]] = set()

    async def call(self, method: str, path: str, *, node: str | None = None, **parameters: Any) -> Any:
        """Do one call. `path` consists of checked ids only; `node` is the one that the call is about."""
        return await self._guarded(node, self._call, method, path, node, parameters)

    async def call_at(
        self, method: str, path: str, *, node: str | None = None, **parameters: Any
    ) -> tuple[Any, str | None]:
        """Do one call; gives its answer and the address that gave it, where that is known."""
        return await self._guarded(node, self._call_at, method, path, node, parameters)

    async def close(self) -> None:
        """Take no more calls, and give those under way a moment to end; the others end by themselves."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        under_way = [asyncio.wrap_future(running) for running in tuple(self._under_way)]
        for one in under_way:
            one.add_done_callback(_heard)
        if under_way:
            await asyncio.wait(under_way, timeout=_PARTING_S)
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.close()

    async def _guarded(self, node: str | None, work: Callable[..., T], *given: Any) -> T:
        """Do a call in a thread, unless its node is left alone just now; the breaker hears how it went."""
        if self._closed:
            raise ProxmoxUnavailable("The service is stopping")
        if self._breakers is None or node is None:
            return await self._in_thread(work, *given)
        self._breakers.check(node)
        try:
            answer = await self._in_thread(work, *given)
        except ProxmoxFailure as error:
            if error.silent:
                self._breakers.failed(node)
            else:
                self._breakers.answered(node)
            raise
        self._breakers.answered(node)
        return answer

    async def _in_thread(self, work: Callable[..., T], *given: Any) -> T:
        """Run in one of the session's threads, which goes on when its caller is cancelled."""
        running = self._threads.submit(work, *given)
        self._under_way.add(running)
        running.add_done_callback(self._under_way.discard)
        return await asyncio.wrap_future(running)

    def _call_at(self, method: str, path: str, node: str | None, parameters: dict[str, Any]) -> tuple[Any, str | None]:
        answer = self._call(method, path, node, parameters)
        return answer, self._connection().peer

    def _call(self, method: str, path: str, node: str | None, parameters: dict[str, Any]) -> Any:
        changes = method != "get"
        connection = self._connection()
        api = ProxmoxResource(base_url=connection.base_url, session=connection, serializer=_SERIALIZER)
        try:
            return getattr(api(path), method)(**parameters)
        except ResourceException as error:
            text = str(error.content or "")
            if isinstance(error.errors, dict):
                text += "".join(f" {name}: {told}" for name, told in error.errors.items() if isinstance(told, str))
            failure = call_failure(error.status_code, text, node=node, changes=changes)
            failure.silent = error.status_code in SILENCE
            raise failure from error
        except NotTrusted as error:
            detail = "The cluster's certificate is not the trusted one"
            raise ProxmoxUnavailable(detail, reason="certificate") from error
        except NotConnected as error:
            raise ProxmoxUnavailable("The cluster cannot be reached", reason="not connected") from error
        except Unanswered as error:
            raise unanswered(LOST if error.lost else error.reason, node=node, changes=changes) from error
        except (KeyError, TypeError, ValueError) as error:
            raise unanswered(type(error).__name__, node=node, changes=changes) from error
        finally:
            if self._closed:
                connection.close()

    def _connection(self) -> Connection:
        """Give the calling thread its own."""
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = Connection(self._cluster, self._trusted, self._timeout_s)
            with self._lock:
                self._connections.append(connection)
        return connection


def _heard(call: asyncio.Future[Any]) -> None:
    """Take note of how a call ended that only had to end: its caller has its failure, or is gone."""
    if not call.cancelled():
        call.exception()
