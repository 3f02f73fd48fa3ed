"""Where a service's replicas are: every address that the names in its URLs stand for, asked for again and again."""

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from time import monotonic
from urllib.parse import urlsplit

import structlog

from gateway.proxy.connection import UpstreamConnection

REST_S = 5.0
"""So long an address that could not be reached is asked only if no other one can be."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the addresses of a name; raises OSError if they cannot be learned."""

_log = structlog.get_logger()


class Endpoint:
    """One replica of a service: what its URL (`http://host:port`) calls it, and the `address` where it is dialled."""

    def __init__(self, url: str, address: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
            raise ValueError(f"an upstream's URL must look like http://host:port, not {url!r}")
        self.url = url
        self.host = parts.hostname
        self.port = parts.port or 80
        self.address = address or self.host
        name = f"[{self.host}]" if ":" in self.host else self.host
        self.authority = f"{name}:{self.port}".encode("ascii")
        self.host_line = b"host: " + self.authority + b"\r\n\r\n"
        self.idle: deque[UpstreamConnection] = deque()
        self.rests_until = 0.0


class Replicas:
    """A service's endpoints in turn: one for each address of each URL.

    Until `learn` has run, a URL is one endpoint, whichever of its addresses the system prefers. Those that a name no
    longer stands for are left: they get no new connection, and `left` holds them while they have one.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.endpoints = [Endpoint(url) for url in urls]
        self.left: list[Endpoint] = []
        self._urls = [(endpoint.url, endpoint.host, endpoint.port) for endpoint in self.endpoints]
        self._turn = 0

    @property
    def are_named(self) -> bool:
        """Whether a URL has a name for its host, of which there may be more than one address."""
        return any(not _is_address(host) for _, host, _ in self._urls)

    def next(self) -> Endpoint:
        """Whose turn it is; the one after it is next time."""
        self._turn += 1
        return self.in_turn()[0]

    def in_turn(self) -> list[Endpoint]:
        """All endpoints, the one whose turn it is first, those that rest last."""
        if len(self.endpoints) == 1:
            return self.endpoints
        first = self._turn % len(self.endpoints)
        turned = self.endpoints[first:] + self.endpoints[:first]
        now = monotonic()
        return sorted(turned, key=lambda endpoint: endpoint.rests_until > now)

    async def learn(self, resolve: Resolve) -> None:
        """Ask for the names' addresses; a name that cannot be asked for keeps the ones it has."""
        found: list[Endpoint] = []
        for url, host, port in self._urls:
            known = {endpoint.address: endpoint for endpoint in self.endpoints if endpoint.url == url}
            try:
                addresses = [host] if _is_address(host) else await resolve(host, port)
            except OSError as error:
                _log.debug("replicas_unknown", host=host, error=str(error))
                found += known.values()
                continue
            found += [known.get(address) or Endpoint(url, address) for address in addresses]
        if not found:
            return
        self.left += [endpoint for endpoint in self.endpoints if endpoint not in found]
        self.endpoints = found


async def addresses_of(host: str, port: int) -> list[str]:
    """All addresses that the system's resolver has for a name, sorted; raises OSError."""
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(answer[4][0]) for answer in answers})


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
