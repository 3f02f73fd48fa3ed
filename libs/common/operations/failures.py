"""What a step's failure means: whether to try again and when, and what the owner is told."""

import random
from dataclasses import dataclass

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from libs.common.bus.protocol import TransientFailure
from libs.common.db import as_database_error
from libs.common.errors import Kind, TelarError, Unavailable
from libs.common.operations.errors import StepGaveUp
from libs.common.operations.saga import RetryLater

_TRANSIENT = frozenset({Kind.LOCKED, Kind.UNAVAILABLE, Kind.UPSTREAM_TIMEOUT, Kind.THROTTLED})


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter: a delay between 0 and `base_s` doubled per failure, at most `cap_s`.

    Source: «Exponential Backoff And Jitter», AWS Architecture Blog.
    """

    base_s: float = 1.0
    cap_s: float = 60.0

    def delay_s(self, failures: int) -> float:
        """The delay after the given number of failures (from 1)."""
        ceiling = min(self.cap_s, self.base_s * 2 ** min(failures - 1, 30))
        return random.uniform(0, ceiling)  # noqa: S311 - it spreads load, it guards nothing


@dataclass(frozen=True, slots=True)
class Failure:
    """`error` is what the owner reads if there is no other attempt; `after_s` is the least delay, exact if `fixed`."""

    error: TelarError
    retryable: bool
    surprise: bool = False
    after_s: float = 0.0
    fixed: bool = False

    def delay_s(self, backoff: Backoff, failures: int) -> float:
        return self.after_s if self.fixed else max(self.after_s, backoff.delay_s(failures))


def failure_of(error: Exception, step: str) -> Failure:
    """Judge what a step raised: named transient failures and surprises are tried again, other refusals are final."""
    if isinstance(error, RetryLater):
        gave_up = StepGaveUp(f"Step '{step}' gave up: {error.reason}")
        return Failure(gave_up, retryable=True, after_s=error.after_s, fixed=True)
    if isinstance(error, TransientFailure):
        return Failure(Unavailable(str(error)), retryable=True)
    if isinstance(error, DBAPIError | PoolTimeoutError | psycopg.Error):
        known = as_database_error(error)
        if known is not None:
            return Failure(known, retryable=True, after_s=known.retry_after_s or 0.0)
    if isinstance(error, TelarError):
        return Failure(error, retryable=error.kind in _TRANSIENT, after_s=error.retry_after_s or 0.0)
    surprise = TelarError(f"Step '{step}' failed unexpectedly; an operator finds it in the log under this operation")
    return Failure(surprise, retryable=True, surprise=True)
