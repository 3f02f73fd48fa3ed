"""The circuit breaker's states."""

import pytest

from gateway.proxy import breaker as module
from gateway.proxy.breaker import CircuitBreaker, State


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(module, "monotonic", time)
    return time


def opened(threshold: int = 3) -> CircuitBreaker:
    breaker = CircuitBreaker(threshold=threshold, open_s=5)
    for _ in range(threshold):
        breaker.failed()
    return breaker


def test_it_opens_only_after_failures_in_a_row(time: Time) -> None:
    breaker = CircuitBreaker(threshold=2, open_s=5)
    for _ in range(3):
        breaker.failed()
        breaker.succeeded()
    assert breaker.state is State.CLOSED
    assert breaker.admits()
    breaker.failed()
    breaker.failed()
    assert breaker.state is State.OPEN
    assert not breaker.admits()
    assert breaker.retry_after_s == 5
    assert time.now == 100


def test_half_open_it_lets_one_trial_through_at_a_time(time: Time) -> None:
    breaker = opened()
    time.now += 5
    assert breaker.state is State.HALF_OPEN
    assert [breaker.admits() for _ in range(3)] == [True, False, False]


def test_a_trial_that_succeeds_closes_it_and_one_that_fails_opens_it_again(time: Time) -> None:
    breaker = opened()
    time.now += 5
    assert breaker.admits()
    breaker.failed()
    assert breaker.state is State.OPEN
    time.now += 5
    assert breaker.admits()
    breaker.succeeded()
    assert breaker.state is State.CLOSED
    assert breaker.admits()


def test_a_trial_whose_caller_vanished_does_not_hold_it_open_for_good(time: Time) -> None:
    breaker = opened()
    time.now += 5
    assert breaker.admits()
    time.now += 5
    assert breaker.admits()
