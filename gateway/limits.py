"""Who spends how much: one token bucket per caller, by user when known, else by network address."""

from gateway.settings import GatewaySettings
from libs.common.auth import Principal
from libs.common.ratelimit import RateLimiter

LOGIN_COST = 10.0
KEY_EXCHANGE_COST = 5.0
STREAM_COST = 5.0


class Limits:
    """Raises Throttled when a caller has spent what it had."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._limiter = RateLimiter(per_second=settings.rate_per_second, burst=settings.rate_burst)

    def spend(self, principal: Principal | None, address: str, cost: float = 1.0) -> None:
        self._limiter.spend(principal.user_id if principal is not None else f"address {address}", cost)

    def spend_on_key(self, address: str) -> None:
        """Before auth is asked about an API key: guessing keys must not become a load on it."""
        self._limiter.spend(f"key {address}", KEY_EXCHANGE_COST)

    def spend_on_login(self, address: str) -> None:
        self._limiter.spend(f"login {address}", LOGIN_COST)
