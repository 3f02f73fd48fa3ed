"""One service as the gateway sees it: its addresses, its pool of connections, its circuit breaker."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from time import monotonic

import structlog
from prometheus_client import Counter

from gateway.proxy.breaker import CircuitBreaker
from gateway.proxy.connection import Exchange, UpstreamConnection
from gateway.proxy.errors import Failures, failures_of
from gateway.proxy.replicas import REST_S, Endpoint, Replicas, Resolve, addresses_of
from libs.common.errors import TelarError

TICK_S = 0.05
CONNECT_TIMEOUT_S = 2.0
LEARN_EVERY_S = 2.0
_log = structlog.get_logger()


class Upstream:
    """A service behind the gateway; replicas are asked in turn, and the next one when one cannot be reached.

    `keep_alive_s` must be shorter than the service's own keep-alive time (uvicorn's default is 5 s), so that a reused
    connection is not about to be closed. `answer_timeout_s` runs from the last byte of the request that was sent to the
    head of the answer; the body then may take any time (downloads, SSE), and TCP keep-alive finds dead hosts.
    `requests` counts what is asked, a moment later.
    """

    def __init__(
        self,
        name: str,
        urls: Sequence[str],
        *,
        answer_timeout_s: float = 60.0,
        keep_alive_s: float = 4.0,
        max_requests: int = 2048,
        breaker: CircuitBreaker | None = None,
        requests: Counter | None = None,
    ) -> None:
        if not urls:
            raise ValueError(f"upstream {name} has no URL")
        self.name = name
        self.failures: Failures = failures_of(name)
        self.breaker = breaker or CircuitBreaker()
        self.replicas = Replicas(urls)
        self.busy: set[Exchange] = set()
        self.tick = 0
        self._answer_ticks = max(1, round(answer_timeout_s / TICK_S))
        self._keep_alive_s = keep_alive_s
        self._max_requests = max_requests
        self._requests = requests
        self._admitted = 0
        self._timer: asyncio.TimerHandle | None = None

    def admit(self) -> None:
        """Raise the service's Unavailable while its circuit is open or it has too many requests already."""
        if self.breaker.failures and not self.breaker.admits():
            raise self.failures.unavailable(
                f"The {self.name} service does not answer; try again shortly.",
                retry_after_s=self.breaker.retry_after_s or 1.0,
            )
        if len(self.busy) >= self._max_requests:
            raise self.failures.unavailable(
                f"The {self.name} service has more requests than it can take.", retry_after_s=1.0
            )
        self._admitted += 1
        self._watch()

    def idle_connection(self) -> UpstreamConnection | None:
        """A kept-alive connection to the endpoint whose turn it is, if there is one."""
        idle = self.replicas.next().idle
        while idle:
            connection = idle.pop()
            if not connection.closed:
                return connection
        return None

    async def new_connection(self) -> UpstreamConnection:
        """Connect to the first endpoint in turn that can be reached; raises the service's Unavailable if none can."""
        cause: OSError | None = None
        for endpoint in self.replicas.in_turn():
            try:
                return await self._connect(endpoint)
            except OSError as error:
                endpoint.rests_until = monotonic() + REST_S
                cause = error
        raise self.unreachable(cause)

    def unreachable(self, cause: Exception | None) -> TelarError:
        """Count it against the service that none of its endpoints could be reached; the error to raise."""
        self.breaker.failed()
        _log.warning("upstream_unreachable", service=self.name, error=str(cause))
        return self.failures.unavailable(
            f"The {self.name} service cannot be reached.", retry_after_s=max(1.0, self.breaker.retry_after_s)
        )

    async def _connect(self, endpoint: Endpoint) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, connection = await loop.create_connection(
                lambda: UpstreamConnection(endpoint.host_line, endpoint.idle), endpoint.address, endpoint.port
            )
        keep_alive(transport)
        return connection

    def begin(self, exchange: Exchange) -> None:
        self.busy.add(exchange)
        self._watch()

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._on_tick)

    def finish(self, exchange: Exchange) -> None:
        """Take the connection back, or close it if the exchange did not end cleanly."""
        self.busy.discard(exchange)
        if exchange.watcher is not None:
            exchange.watcher.cancel()
        connection = exchange.connection
        if connection.release():
            connection.idle_since = self.tick
            connection.pool.append(connection)
        elif not connection.closed:
            connection.abort()

    def _on_tick(self) -> None:
        """Watch over what takes longer than a moment; a short exchange pays for neither a task nor a timer."""
        self.tick += 1
        self._timer = None
        if self._requests is not None:  # a counter's lock for each request would be dear
            self._requests.inc(self._admitted)
        self._admitted = 0
        for exchange in list(self.busy):
            if exchange.watcher is None and exchange.request_sent:
                exchange.watcher = asyncio.create_task(exchange.watch())
            if exchange.awaits_upstream and self.tick - exchange.since_tick > self._answer_ticks:
                self._time_out(exchange)
        oldest = self.tick - self._keep_alive_s / TICK_S
        resting = False
        for endpoint in (*self.replicas.endpoints, *self.replicas.left):
            while endpoint.idle and (endpoint.idle[0].closed or endpoint.idle[0].idle_since < oldest):
                connection = endpoint.idle.popleft()
                if not connection.closed:
                    connection.abort()
            resting = resting or bool(endpoint.idle)
        if self.busy or resting:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._on_tick)

    def _time_out(self, exchange: Exchange) -> None:
        if exchange.failure is None:
            self.breaker.failed()
            _log.warning("upstream_timeout", service=self.name)
            exchange.fail(self.failures.timeout(f"The {self.name} service did not answer in time."))

    async def follow_replicas(self, resolve: Resolve = addresses_of, *, every_s: float = LEARN_EVERY_S) -> None:
        """Keep knowing all replicas, until cancelled; returns at once if all URLs hold addresses."""
        while self.replicas.are_named:
            await self.replicas.learn(resolve)
            in_use = {id(exchange.connection.pool) for exchange in self.busy}
            self.replicas.left = [one for one in self.replicas.left if one.idle or id(one.idle) in in_use]
            self._watch()  # closes what rests on those that were left
            await asyncio.sleep(every_s)

    def end_sessions(self, belongs: Callable[[str], bool], reason: TelarError) -> int:
        """Cut what the sessions that `belongs` picks have under way, open streams among them; how many there were.

        A request whose answer has not begun raises `reason` instead.
        """
        cut = [exchange for exchange in self.busy if exchange.session and belongs(exchange.session)]
        for exchange in cut:
            exchange.fail(reason)
        return len(cut)

    def close(self) -> None:
        """Close all connections; exchanges under way fail."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for endpoint in (*self.replicas.endpoints, *self.replicas.left):
            while endpoint.idle:
                endpoint.idle.pop().abort()
        for exchange in list(self.busy):
            exchange.fail(self.failures.unavailable("The gateway is shutting down.", retry_after_s=1.0))


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Let the kernel find a host that vanished under a silent stream, within about a minute and a half."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
