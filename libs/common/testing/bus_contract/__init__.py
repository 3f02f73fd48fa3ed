"""What every event bus must do: one suite, run on LocalBus and on a real RabbitMQ.

A subclass of BusContract gives the fixture `make_bus`: it returns buses that are not started and all meet at the same
broker, made with `RETRY`. The suite starts and closes them.
"""

from collections.abc import AsyncIterator

import pytest

from libs.common.testing.bus_contract.handling import HandlingContract
from libs.common.testing.bus_contract.sharing import SharingContract
from libs.common.testing.bus_contract.tools import RETRY, TRACEPARENT, Buses, Inbox, MakeBus, Names, until

__all__ = ["RETRY", "TRACEPARENT", "BusContract", "Inbox", "MakeBus", "Names", "until"]


class BusContract(HandlingContract, SharingContract):
    """Inherit from it and give `make_bus`; without it pytest finds no such fixture."""

    @pytest.fixture
    def names(self) -> Names:
        return Names()

    @pytest.fixture
    async def buses(self, make_bus: MakeBus) -> AsyncIterator[Buses]:
        buses = Buses(make_bus)
        yield buses
        await buses.close()
