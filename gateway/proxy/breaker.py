"""When to stop asking a service that does not answer."""

from enum import StrEnum
from time import monotonic


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Opens after `threshold` failures in a row; after `open_s` seconds it lets one trial through at a time.

    Failures are connections that could not be made and answers that did not come in time; a 5xx is an answer.
    """

    def __init__(self, *, threshold: int = 5, open_s: float = 5.0) -> None:
        self._threshold = threshold
        self._open_s = open_s
        self.failures = 0
        self._opened_at = 0.0
        self._trial_at: float | None = None

    @property
    def state(self) -> State:
        if self.failures < self._threshold:
            return State.CLOSED
        return State.OPEN if self.retry_after_s > 0 else State.HALF_OPEN

    @property
    def retry_after_s(self) -> float:
        """Seconds until the next trial may be made."""
        return max(0.0, self._opened_at + self._open_s - monotonic())

    def admits(self) -> bool:
        """Whether a request may be sent now; in the half-open state the caller who hears yes is the trial."""
        if self.failures < self._threshold:
            return True
        now = monotonic()
        if now < self._opened_at + self._open_s:
            return False
        # A trial whose caller went away never reports; it must not hold the circuit open for good.
        if self._trial_at is not None and now < self._trial_at + self._open_s:
            return False
        self._trial_at = now
        return True

    def succeeded(self) -> None:
        self.failures = 0
        self._trial_at = None

    def failed(self) -> None:
        self.failures += 1
        self._trial_at = None
        if self.failures >= self._threshold:
            self._opened_at = monotonic()
