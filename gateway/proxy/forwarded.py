"""Who is calling: the peer's address, or what a configured proxy says of it."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from starlette.types import Scope

_LONGEST_HOST_BYTES = 261  # 255 of a DNS name, a colon and five digits
_OVER_UNIX_SOCKET = "127.0.0.1"


class TrustedProxies:
    """The networks (CIDR) of the proxies in front of the gateway; nobody else's X-Forwarded-* is believed."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(ip_network(network) for network in networks)
        self.trusts = lru_cache(maxsize=4096)(self._trusts)
        self._own_words = lru_cache(maxsize=4096)(_fields)

    def _trusts(self, host: str) -> bool:
        address = _address(host)
        return address is not None and any(address in network for network in self._networks)

    def client(self, scope: Scope) -> str:
        """The caller's address: the rightmost one in X-Forwarded-For that is no trusted proxy, or else the peer."""
        peer = _peer(scope)
        if not self._networks or not self.trusts(peer):
            return peer
        values = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        client = peer
        for hop in reversed(b",".join(values).decode("latin-1").split(",")):
            address = _address(hop.strip())
            if address is None:
                break
            client = str(address)
            if not self.trusts(client):
                break
        return client

    def fields(self, scope: Scope) -> bytes:
        """The X-Forwarded-For, -Proto and -Host lines that the upstream sees, each with its line end."""
        host = b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
                break
        peer = _peer(scope)
        scheme = scope["scheme"]
        if not self._networks or not self.trusts(peer):
            if len(host) > _LONGEST_HOST_BYTES:
                return _fields(peer, scheme, b"")
            return self._own_words(peer, scheme, host)
        for name, value in scope["headers"]:
            if name == b"x-forwarded-proto" and value in (b"http", b"https"):
                scheme = value.decode("ascii")
            elif name == b"x-forwarded-host" and value:
                host = value
        return _fields(self.client(scope), scheme, host)


def _fields(client: str, scheme: str, host: bytes) -> bytes:
    proto = {"ws": "http", "wss": "https"}.get(scheme, scheme)
    lines = f"x-forwarded-for: {client}\r\nx-forwarded-proto: {proto}\r\n".encode("ascii")
    return lines + b"x-forwarded-host: " + host + b"\r\n" if host else lines


def _peer(scope: Scope) -> str:
    client = scope["client"]
    return client[0] if client else _OVER_UNIX_SOCKET


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
