import time

import pytest

from libs.common.ids import uuid7


def test_ids_are_version_7_and_sort_by_time() -> None:
    made = [uuid7() for _ in range(1000)]
    assert {one.version for one in made} == {7}
    assert {one.variant for one in made} == {"specified in RFC 4122"}
    assert made == sorted(set(made))
    assert abs((made[-1].int >> 80) / 1000 - time.time()) < 1


def test_ids_sort_even_while_the_clock_stands_still_or_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns)
    made = [uuid7() for _ in range(5000)]
    now_ns -= 3_600_000_000_000
    made += [uuid7() for _ in range(5000)]
    assert made == sorted(set(made))
