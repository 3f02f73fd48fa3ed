import pytest

from services.vms.adapters.proxmox.breaker import Breakers
from services.vms.errors import NodeDown


def test_a_breaker_opens_after_failures_in_a_row_lets_one_try_and_closes_with_an_answer() -> None:
    now = 100.0
    breakers = Breakers(failures=2, open_s=10.0, now=lambda: now)
    breakers.failed("sv1")
    breakers.answered("sv1")
    breakers.failed("sv1")
    breakers.check("sv1")  # not two in a row
    breakers.failed("sv1")
    assert breakers.trouble("sv1") == "2 calls in a row got no answer; it is tried again in 10 s"
    assert breakers.trouble("sv2") is None
    with pytest.raises(NodeDown):
        breakers.check("sv1")
    breakers.check("sv2")
    now += 10
    assert breakers.trouble("sv1") is None
    breakers.check("sv1")  # this one tries
    with pytest.raises(NodeDown):
        breakers.check("sv1")
    breakers.failed("sv1")
    with pytest.raises(NodeDown):
        breakers.check("sv1")
    now += 10
    breakers.check("sv1")
    breakers.answered("sv1")
    breakers.check("sv1")
    assert breakers.trouble("sv1") is None
