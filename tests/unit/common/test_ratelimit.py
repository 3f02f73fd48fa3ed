import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Throttled
from libs.common.ratelimit import RateLimiter


class Now:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def test_a_caller_spends_its_burst_then_waits_and_earns_it_back() -> None:
    now = Now()
    limiter = RateLimiter(per_second=2, burst=4, now=now)
    for _ in range(4):
        limiter.spend("ada")
    with pytest.raises(Throttled) as refused:
        limiter.spend("ada")
    assert refused.value.retry_after_s == 1
    now.s += 0.5
    limiter.spend("ada")


def test_callers_do_not_spend_each_others() -> None:
    limiter = RateLimiter(per_second=1, burst=1, now=Now())
    limiter.spend("ada")
    limiter.spend("bob")
    with pytest.raises(Throttled):
        limiter.spend("ada")


def test_a_refusal_costs_nothing() -> None:
    now = Now()
    limiter = RateLimiter(per_second=1, burst=2, now=now)
    limiter.spend("ada", 2)
    for _ in range(100):
        with pytest.raises(Throttled):
            limiter.spend("ada", 2)
    now.s += 2
    limiter.spend("ada", 2)


def test_what_is_spent_elsewhere_is_owed_here_and_told_once() -> None:
    now = Now()
    here, there = (RateLimiter(per_second=2, burst=4, now=now) for _ in range(2))
    for limiter in (here, there):
        for _ in range(4):
            limiter.spend("ada")
    told = here.take_spent()
    assert told == {"ada": 4}
    assert here.take_spent() == {}
    there.charge(told)
    with pytest.raises(Throttled) as refused:
        there.spend("ada")
    assert refused.value.retry_after_s == 3
    now.s += 2.5
    there.spend("ada")
    there.spend("bob")


def test_no_news_puts_a_caller_deeper_than_a_burst_into_debt() -> None:
    now = Now()
    limiter = RateLimiter(per_second=2, burst=4, now=now)
    limiter.charge({"ada": 1_000_000})
    now.s += 2
    with pytest.raises(Throttled):
        limiter.spend("ada")
    now.s += 0.5
    limiter.spend("ada")


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 3)), max_size=60))
def test_nobody_ever_gets_more_than_burst_plus_what_was_earned(steps: list[tuple[float, float]]) -> None:
    now = Now()
    limiter = RateLimiter(per_second=3, burst=10, now=now)
    started, spent = now.s, 0.0
    for wait_s, cost in steps:
        now.s += wait_s
        try:
            limiter.spend("ada", cost)
            spent += cost
        except Throttled:
            continue
    assert spent <= 10 + 3 * (now.s - started) + 1e-6


def test_a_call_that_costs_more_than_a_burst_is_let_through_once_the_bucket_is_full() -> None:
    now = Now()
    limiter = RateLimiter(per_second=1, burst=5, now=now)
    limiter.spend("ada", 10)
    with pytest.raises(Throttled) as refused:
        limiter.spend("ada", 10)
    now.s += refused.value.retry_after_s or 0
    limiter.spend("ada", 10)
