"""Rate limits as token buckets: each caller may spend `burst` at once and earns `per_second` back."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from libs.common.errors import Throttled

MAX_BUCKETS = 100_000


class RateLimiter:
    """Token buckets by caller, in this process. A call costs what its route says (a login more than a list)."""

    def __init__(self, *, per_second: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, caller: str, cost: float = 1.0) -> None:
        """Take `cost` from the caller's bucket; raises Throttled with the seconds until there is enough."""
        now = self._now()
        level, at = self._buckets.pop(caller, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._per_second)
        allowed = level >= cost
        self._buckets[caller] = (level - cost if allowed else level, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait_s = math.ceil((min(cost, self._burst) - level) / self._per_second)
            raise Throttled(f"Slow down: try again in {wait_s} s", retry_after_s=wait_s)
