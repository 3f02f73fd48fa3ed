"""The guarded client: every hop's URL is parsed strictly, resolved once, checked, and dialled by checked address."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Literal, Self

from libs.common.http.address import Address, AddressPolicy
from libs.common.http.errors import Reason, RedirectRefused, UpstreamTooSlow
from libs.common.http.exchange import Exchange
from libs.common.http.limits import Limits
from libs.common.http.pool import Connection, Endpoint, Pool
from libs.common.http.resolver import CheckedResolver, Lookup, SystemLookup
from libs.common.http.response import Response
from libs.common.http.url import OutboundUrl, follow, parse
from libs.common.trust import system_trust

Method = Literal["GET", "HEAD"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+\Z")
_VALUE = re.compile(r"[\x20-\x7e\t]*\Z")
_OWN_HEADERS = frozenset(
    {"host", "connection", "keep-alive", "accept-encoding", "content-length", "transfer-encoding", "te", "trailer"}
    | {"upgrade", "expect", "cookie", "user-agent"}
)
_MAX_IDLE = 256
_IDLE_S = 15.0
# These say which bytes are wanted and identify nobody; all others stay with the origin they were meant for.
_CROSS_ORIGIN_HEADERS = frozenset({"accept", "range", "if-range"})


class GuardedClient:
    """HTTP/1.1 GET and HEAD for URLs that users supply. No proxies, no cookies, no retries; redirects are followed.

    One client per process keeps its connections alive; concurrency is the caller's. `lookup` and `ssl_context`
    default to the system's resolver and trust store.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        limits: Limits | None = None,
        lookup: Lookup | None = None,
        ssl_context: ssl.SSLContext | None = None,
        user_agent: str = "Telar",
        resolve_ttl_s: float = 10.0,
    ) -> None:
        self._limits = limits or Limits()
        self._system = SystemLookup()
        self._resolver = CheckedResolver(policy, lookup or self._system, ttl_s=resolve_ttl_s)
        self._pool = Pool(ssl_context or system_trust(), max_idle=_MAX_IDLE, idle_s=_IDLE_S)
        self._own_lines = f"User-Agent: {user_agent}\r\nAccept-Encoding: identity\r\n"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close idle connections; those in use close when their `stream` ends."""
        self._system.close()
        await self._pool.aclose()

    async def resolve(self, url: str) -> tuple[OutboundUrl, tuple[Address, ...]]:
        """Check a URL that another program will call, and give the addresses which that program must be pinned to.

        For Git: `-c http.curloptResolve=host:port:address`. Raises UrlRefused, AddressRefused, ExchangeFailed.
        """
        parsed = parse(url)
        until = asyncio.get_running_loop().time() + self._limits.connect_timeout_s
        return parsed, await self._addresses(parsed, until)

    @asynccontextmanager
    async def stream(
        self, method: Method, url: str, *, headers: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> AsyncIterator[Response]:
        """Call a URL and follow its redirects; the block gets a response of any other status, its body unread.

        `headers` go to the URL's own origin only, except Accept, Range and If-Range. They must not come from users:
        a malformed name or value, or a header that the client sets itself, is a ValueError.
        Raises UrlRefused, AddressRefused, RedirectRefused, UpstreamTooSlow, BodyTooLarge and ExchangeFailed.
        """
        limits = limits or self._limits
        deadline = asyncio.get_running_loop().time() + limits.total_deadline_s
        response = await self._follow(method, parse(url), _checked_headers(headers or {}), limits, deadline)
        try:
            yield response
        finally:
            self._release(response)

    async def _follow(
        self, method: Method, url: OutboundUrl, headers: dict[str, str], limits: Limits, deadline: float
    ) -> Response:
        for redirects in range(limits.max_redirects + 1):
            response = await self._call(method, url, headers, limits, deadline)
            location = response.location
            if location is None:
                response.redirects = redirects
                return response
            self._release(response)
            target = follow(url, location)
            if url.scheme == "https" and target.scheme == "http" and not limits.allow_downgrade:
                raise RedirectRefused(Reason.REDIRECT_DOWNGRADE, "The server redirected from https to http.")
            if target.origin != url.origin:
                headers = {name: value for name, value in headers.items() if name in _CROSS_ORIGIN_HEADERS}
            url = target
        raise RedirectRefused(Reason.REDIRECT_LIMIT, f"The server redirected more than {limits.max_redirects} times.")

    async def _call(
        self, method: Method, url: OutboundUrl, headers: dict[str, str], limits: Limits, deadline: float
    ) -> Response:
        """One hop: resolve, check, reuse or dial, send, and wait for the head."""
        until = min(deadline, asyncio.get_running_loop().time() + limits.connect_timeout_s)
        addresses = await self._addresses(url, until)
        endpoints = [Endpoint(url.scheme, url.host, url.port, address) for address in addresses]
        request = self._request(method, url, headers)
        connection = self._pool.take(endpoints)
        reused = connection is not None
        while True:
            connection = connection or await self._pool.dial(endpoints, until=until)
            exchange = Exchange(body_expected=method != "HEAD", limits=limits)
            try:
                connection.send(request, exchange)
                await self._wait_for_head(exchange, limits, deadline)
            except BaseException:
                connection.abort()
                raise
            if reused and exchange.error is not None and not exchange.started:
                connection, reused = None, False  # closed while idle: the server never saw the request
                continue
            return self._response(url, connection, exchange, limits, deadline)

    def _response(
        self, url: OutboundUrl, connection: Connection, exchange: Exchange, limits: Limits, deadline: float
    ) -> Response:
        if exchange.error is not None:
            connection.abort()
            raise exchange.error
        return Response(url, connection, exchange, limits, deadline=deadline)

    async def _addresses(self, url: OutboundUrl, until: float) -> tuple[Address, ...]:
        try:
            async with asyncio.timeout_at(until):
                return await self._resolver.resolve(url)
        except TimeoutError:
            raise UpstreamTooSlow(Reason.CONNECT_TIMEOUT, "The host's address was not found in time.") from None

    async def _wait_for_head(self, exchange: Exchange, limits: Limits, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        until = min(deadline, loop.time() + limits.response_timeout_s)
        while not exchange.head_complete and exchange.error is None:
            if loop.time() >= until:
                reason = Reason.DEADLINE if until == deadline else Reason.RESPONSE_TIMEOUT
                raise UpstreamTooSlow(reason, "The server did not answer in time.")
            await exchange.wait(until)

    def _request(self, method: Method, url: OutboundUrl, headers: dict[str, str]) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        accept = "" if "accept" in headers else "Accept: */*\r\n"
        head = f"{method} {url.target} HTTP/1.1\r\nHost: {url.authority}\r\n{self._own_lines}{accept}{lines}\r\n"
        return head.encode("ascii")

    def _release(self, response: Response) -> None:
        connection, exchange = response.connection, response.exchange
        if response.reusable:
            self._pool.put(connection)
        else:
            connection.abort()
        exchange.release()


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    checked = {name.lower(): value for name, value in headers.items()}
    for name, value in checked.items():
        if name in _OWN_HEADERS or name.startswith("proxy-") or not _TOKEN.match(name) or not _VALUE.match(value):
            raise ValueError(f"header {name!r} cannot be sent")
    return checked
