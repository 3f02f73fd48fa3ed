"""Names to checked addresses: one lookup, every answer checked, kept for seconds so that bursts ask once."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address

import structlog

from libs.common.http.address import Address, AddressPolicy
from libs.common.http.errors import AddressRefused, ExchangeFailed, Reason
from libs.common.http.url import OutboundUrl

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) to its addresses as text, in order of preference; raises OSError if there are none."""

_Answer = tuple[tuple[Address, ...], Reason | None]
_MAX_NAMES = 4_096
_THREADS = 32

_log = structlog.get_logger()


class SystemLookup:
    """Asks the system's resolver (getaddrinfo), which also reads /etc/hosts.

    On threads of its own: names that users choose may hang, and the loop's few threads find the database's, too.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="lookup")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return [str(sockaddr[0]) for _family, _type, _protocol, _name, sockaddr in found]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class CheckedResolver:
    """Resolves a URL's host to addresses that the policy lets pass; one refused address refuses the name."""

    def __init__(self, policy: AddressPolicy, lookup: Lookup, *, ttl_s: float = 10.0) -> None:
        self._policy = policy
        self._lookup = lookup
        self._ttl_s = ttl_s
        self._known: dict[tuple[str, int], tuple[float, asyncio.Task[_Answer]]] = {}

    async def resolve(self, url: OutboundUrl) -> tuple[Address, ...]:
        """Addresses to dial, all checked. Raises AddressRefused, or ExchangeFailed if the name has none."""
        if url.literal is not None:
            addresses, reason = self._checked(url.host, (url.literal,))
        else:
            addresses, reason = await self._ask(url)
        if reason is not None:
            raise AddressRefused(reason, "The URL leads to an address that is not on the public internet.")
        return addresses

    async def _ask(self, url: OutboundUrl) -> _Answer:
        key = (url.host, url.port)
        now = asyncio.get_running_loop().time()
        known = self._known.get(key)
        if known is None or known[0] <= now:
            task = asyncio.create_task(self._resolve(*key))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # a waiter may have left
            if len(self._known) >= _MAX_NAMES:
                self._known.pop(next(iter(self._known)))
            self._known.pop(key, None)
            known = self._known[key] = (now + self._ttl_s, task)
        try:
            return await asyncio.shield(known[1])
        except (OSError, UnicodeError):
            if self._known.get(key) is known:
                del self._known[key]
            raise ExchangeFailed(Reason.NAME_NOT_RESOLVED, "The URL's host name has no address.") from None

    async def _resolve(self, host: str, port: int) -> _Answer:
        addresses = tuple(ip_address(text) for text in dict.fromkeys(await self._lookup(host, port)))
        if not addresses:
            raise OSError("no address")
        return self._checked(host, addresses)

    def _checked(self, host: str, addresses: tuple[Address, ...]) -> _Answer:
        for address in addresses:
            reason = self._policy.check(address)
            if reason is not None:
                _log.warning("outbound_address_refused", host=host, address=str(address), reason=reason.value)
                return (), reason
        return addresses, None
