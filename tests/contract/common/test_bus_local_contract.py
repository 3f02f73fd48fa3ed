"""LocalBus keeps the bus's contract."""

import pytest

from libs.common.bus import LocalBroker, LocalBus
from libs.common.testing.bus_contract import RETRY, BusContract, MakeBus


class TestLocalBus(BusContract):
    @pytest.fixture
    def make_bus(self) -> MakeBus:
        broker = LocalBroker()
        broker.open()
        return lambda: LocalBus(broker, retry=RETRY)
