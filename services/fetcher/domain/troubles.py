"""What answers make of a domain's state: back-off where it asks for patience, a breaker where nothing answers. Pure."""

from dataclasses import dataclass, replace

from services.fetcher.domain import retries

PATIENCE = 5
"""So many failures to reach a domain in a row open its breaker."""
TRIPS_TO_DEATH = 3
GROWTH = 20
"""So many good answers in a row widen a narrowed domain by one permit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainState:
    """A domain in trouble; one that is not has no state.

    `width` caps its downloads at once, `trips` counts how often it was left alone in a row, and until
    `dead_until_ms` its pictures fail without being asked for.
    """

    domain: str
    width: int
    blocked_until_ms: int
    trips: int = 0
    dead_until_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """The operator's rules: permits per domain, and the waits in seconds."""

    per_domain: int
    backoff_s: float
    breaker_s: float
    cap_s: float
    dead_s: float


def throttled(
    domain: str, state: DomainState | None, manners: Manners, *, now_ms: int, retry_after_s: float | None
) -> DomainState | None:
    """After a 429 or 503: half as wide, and left alone for its Retry-After or longer each time. None: known already."""
    state = state or DomainState(domain=domain, width=manners.per_domain, blocked_until_ms=0)
    asked_until_ms = now_ms + int(min(retry_after_s or 0.0, manners.cap_s) * 1000)
    if now_ms < state.blocked_until_ms:  # one of those that were under way when it was blocked
        return replace(state, blocked_until_ms=asked_until_ms) if asked_until_ms > state.blocked_until_ms else None
    wait_s = min(manners.cap_s, manners.backoff_s * 2.0 ** min(state.trips, 20))
    return replace(
        state,
        width=max(1, min(state.width, manners.per_domain) // 2),
        trips=state.trips + 1,
        blocked_until_ms=max(asked_until_ms, now_ms + int(wait_s * 1000)),
    )


def unreachable(
    domain: str, state: DomainState | None, manners: Manners, *, now_ms: int, in_a_row: int
) -> DomainState | None:
    """After the `in_a_row`-th failure to reach it: a pause, then one probe at a time, at last taken for dead."""
    tripped = state is not None and state.trips > 0
    state = state or DomainState(domain=domain, width=manners.per_domain, blocked_until_ms=0)
    if now_ms < state.blocked_until_ms or in_a_row < (1 if tripped else PATIENCE):
        return None
    trips = state.trips + 1
    if trips >= TRIPS_TO_DEATH:
        dead_until_ms = now_ms + int(manners.dead_s * 1000)
        return replace(state, width=1, trips=trips, blocked_until_ms=0, dead_until_ms=dead_until_ms)
    wait_s = min(manners.cap_s, manners.breaker_s * 2.0 ** (trips - 1))
    return replace(state, width=1, trips=trips, blocked_until_ms=now_ms + int(wait_s * 1000))


def recovered(state: DomainState, manners: Manners, *, good_answers: int) -> DomainState | None:
    """After good answers: forgiven at once, widened bit by bit; None once nothing is left to remember."""
    width = state.width + good_answers // GROWTH
    if width >= manners.per_domain:
        return None
    return replace(state, width=width, trips=0, dead_until_ms=0)


def is_throttling(reason: str) -> bool:
    return reason in retries.THROTTLED


def is_unreachable(reason: str) -> bool:
    return reason in retries.UNREACHABLE
