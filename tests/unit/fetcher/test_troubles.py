"""What answers make of a domain's state."""

from services.fetcher.domain import troubles
from services.fetcher.domain.troubles import DomainState, Manners
from services.fetcher.operations.politeness import pace_width

MANNERS = Manners(per_domain=8, backoff_s=4, breaker_s=30, cap_s=300, dead_s=600)


def test_each_throttling_halves_the_width_and_doubles_the_wait() -> None:
    state: DomainState | None = None
    now_ms, seen = 0, []
    for _ in range(5):
        state = troubles.throttled("a", state, MANNERS, now_ms=now_ms, retry_after_s=None)
        assert state is not None
        seen.append((state.width, state.blocked_until_ms - now_ms))
        now_ms = state.blocked_until_ms
    assert seen == [(4, 4_000), (2, 8_000), (1, 16_000), (1, 32_000), (1, 64_000)]


def test_retry_after_is_kept_up_to_the_cap_and_late_answers_change_nothing_else() -> None:
    state = troubles.throttled("a", None, MANNERS, now_ms=0, retry_after_s=60)
    assert state is not None
    assert state.blocked_until_ms == 60_000
    assert troubles.throttled("a", state, MANNERS, now_ms=1_000, retry_after_s=None) is None
    longer = troubles.throttled("a", state, MANNERS, now_ms=1_000, retry_after_s=9_999)
    assert longer is not None
    assert (longer.blocked_until_ms, longer.width, longer.trips) == (301_000, state.width, state.trips)


def test_a_domain_where_nothing_answers_is_left_alone_then_probed_then_dead() -> None:
    assert troubles.unreachable("a", None, MANNERS, now_ms=0, in_a_row=4) is None
    first = troubles.unreachable("a", None, MANNERS, now_ms=0, in_a_row=5)
    assert first is not None
    assert (first.width, first.blocked_until_ms, first.dead_until_ms) == (1, 30_000, 0)
    assert troubles.unreachable("a", first, MANNERS, now_ms=29_999, in_a_row=9) is None
    second = troubles.unreachable("a", first, MANNERS, now_ms=30_000, in_a_row=1)
    assert second is not None
    assert second.blocked_until_ms == 90_000
    third = troubles.unreachable("a", second, MANNERS, now_ms=90_000, in_a_row=1)
    assert third is not None
    assert (third.blocked_until_ms, third.dead_until_ms) == (0, 690_000)


def test_good_answers_forgive_at_once_and_widen_bit_by_bit() -> None:
    narrow = DomainState(domain="a", width=6, blocked_until_ms=5, trips=3)
    forgiven = troubles.recovered(narrow, MANNERS, good_answers=1)
    assert forgiven is not None
    assert (forgiven.width, forgiven.trips) == (6, 0)
    wider = troubles.recovered(forgiven, MANNERS, good_answers=20)
    assert wider is not None
    assert wider.width == 7
    assert troubles.recovered(wider, MANNERS, good_answers=20) is None


def test_a_pace_uses_as_many_permits_as_a_second_has_requests() -> None:
    assert [pace_width(8, rate) for rate in (None, 0.2, 1, 3.5, 50)] == [8, 1, 1, 4, 8]
