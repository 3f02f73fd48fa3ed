"""Who spends how much: one token bucket per caller, by user when known, else by network address."""

import asyncio
import json
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from gateway.settings import GatewaySettings
from libs.common.auth import Principal
from libs.common.bus import Bus
from libs.common.ids import uuid7
from libs.common.ratelimit import RateLimiter

LOGIN_COST = 10.0
KEY_EXCHANGE_COST = 5.0
SPENT_CHANNEL = "spent"
_TELL_EVERY_S = 0.25


class Limits:
    """Raises Throttled when a caller has spent what it had, at this gateway or at another one.

    Gateways broadcast what was spent at them four times a second: the rate holds over all of them, and the burst but
    for what is spent within that time. While the broker is away each counts by itself.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._limiter = RateLimiter(per_second=settings.rate_per_second, burst=settings.rate_burst)
        self._gateway = uuid7().hex

    def spend(self, principal: Principal | None, address: str, cost: float = 1.0) -> None:
        self._limiter.spend(principal.user_id if principal is not None else f"address {_holder_of(address)}", cost)

    def spend_on_key(self, address: str) -> None:
        """Before auth is asked about an API key: guessing keys must not become a load on it."""
        self._limiter.spend(f"key {_holder_of(address)}", KEY_EXCHANGE_COST)

    def spend_on_login(self, address: str) -> None:
        self._limiter.spend(f"login {_holder_of(address)}", LOGIN_COST)

    async def share(self, bus: Bus) -> None:
        """Tell the other gateways what is spent here, and hear what is spent there, until cancelled."""
        bus.on_broadcast(SPENT_CHANNEL, self._hear)
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            spent = self._limiter.take_spent()
            if spent:
                bus.broadcast(SPENT_CHANNEL, json.dumps({"gateway": self._gateway, "spent": spent}).encode())

    def _hear(self, body: bytes) -> None:
        told = json.loads(body)
        if told["gateway"] != self._gateway:
            self._limiter.charge(told["spent"])


@lru_cache(maxsize=4096)
def _holder_of(address: str) -> str:
    """What one caller holds: an IPv4 address, or an IPv6 /64, in which it may take a new address each time."""
    try:
        peer = ip_address(address)
    except ValueError:
        return address
    if isinstance(peer, IPv6Address) and peer.ipv4_mapped is None:
        return str(ip_network((int(peer), 64), strict=False))
    return address
