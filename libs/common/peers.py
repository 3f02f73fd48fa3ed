"""Who is at the other end: a client's address, believing X-Forwarded-For only from configured proxies."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends, Request

from libs.common.settings import Networks

UNKNOWN = "-"


def client_address(peer: str | None, forwarded_for: Iterable[str], trusted: Networks) -> str:
    """The nearest address that is not a trusted proxy's.

    `forwarded_for` are the header's values in order; each trusted hop vouches for the entry to its left.
    """
    if peer is None:
        return UNKNOWN
    hops = [part.strip() for value in forwarded_for for part in value.split(",")]
    address = peer
    while hops and is_within(address, trusted):
        candidate = hops.pop()
        if not _is_address(candidate):
            break
        address = candidate
    return address


def is_within(address: str, networks: Networks) -> bool:
    """Whether a text is an address of one of these networks."""
    return _is_address(address) and any(ip_address(address) in network for network in networks)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _from_request(request: Request) -> str:
    """A service's caller is the gateway, whose X-Forwarded-For carries one address: the client's."""
    peer = request.client.host if request.client else None
    return client_address(peer, request.headers.getlist("x-forwarded-for"), request.app.state.gateway_networks)


ClientAddress = Annotated[str, Depends(_from_request)]
