"""The lab's time: wall-clock stamps, and delays shortened by the lab's time scale."""

import asyncio
import time


class LabClock:
    """Stamps are real UTC epoch seconds; `sleep`, `elapsed` and `tick` speak in lab seconds."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def now(self) -> float:
        return time.time()

    def epoch(self) -> int:
        return int(time.time())

    def real(self, lab_seconds: float) -> float:
        return lab_seconds * self.scale

    def elapsed(self, since: float) -> float:
        """Lab seconds since the epoch stamp `since`."""
        return max(0.0, (time.time() - since) / self.scale)

    def tick(self, period_s: float, at: float | None = None) -> int:
        """The number of the current period of `period_s` lab seconds; it grows by one per period."""
        return int((time.time() if at is None else at) / (period_s * self.scale))

    async def sleep(self, lab_seconds: float) -> None:
        await asyncio.sleep(lab_seconds * self.scale)
