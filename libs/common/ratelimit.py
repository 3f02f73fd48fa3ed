"""Rate limits as token buckets: each caller may spend `burst` at once and earns `per_second` back."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from libs.common.errors import Throttled

MAX_BUCKETS = 100_000


class RateLimiter:
    """Token buckets by caller. A call costs what its route says (a login more than a list).

    Processes that share a limit tell each other what was spent (`take_spent`, `charge`). What a caller spends at
    several of them at the same moment it owes: at most one burst, so that no news locks anybody out for long.
    """

    def __init__(self, *, per_second: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._spent: dict[str, float] = {}

    def spend(self, caller: str, cost: float = 1.0) -> None:
        """Take `cost`, at most a burst, from the bucket; raises Throttled with the seconds until there is enough."""
        cost, level = min(cost, self._burst), self._level(caller)
        if level >= cost:
            self._keep(caller, level - cost)
            self._spent[caller] = self._spent.get(caller, 0.0) + cost
            return
        self._keep(caller, level)
        wait_s = math.ceil((cost - level) / self._per_second)
        raise Throttled(f"Slow down: try again in {wait_s} s", retry_after_s=wait_s)

    def take_spent(self) -> dict[str, float]:
        """What each caller has spent here since the last call."""
        spent, self._spent = self._spent, {}
        return spent

    def charge(self, spent: Mapping[str, float]) -> None:
        """Take from the buckets what callers have spent elsewhere."""
        for caller, cost in spent.items():
            self._keep(caller, max(self._level(caller) - cost, -self._burst))

    def _level(self, caller: str) -> float:
        level, at = self._buckets.get(caller, (self._burst, 0.0))
        return min(self._burst, level + (self._now() - at) * self._per_second)

    def _keep(self, caller: str, level: float) -> None:
        self._buckets[caller] = (level, self._now())
        self._buckets.move_to_end(caller)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
