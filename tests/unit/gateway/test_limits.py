"""Gateways that share a bus share their limits."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from pydantic import SecretStr

from gateway.limits import LOGIN_COST, SPENT_CHANNEL, Limits
from gateway.settings import GatewaySettings
from libs.common.bus import LocalBus
from libs.common.bus.local_broker import LocalBroker
from libs.common.errors import Throttled
from libs.common.settings import CommonSettings

COMMON = CommonSettings(_env_file=None, service_secret=SecretStr("x" * 32))
SETTINGS = GatewaySettings(_env_file=None, common=COMMON, rate_per_second=0.001, rate_burst=3 * LOGIN_COST)


async def test_what_is_spent_at_one_gateway_is_spent_at_the_others() -> None:
    broker = LocalBroker()
    broker.open()
    gateways = []
    async with AsyncExitStack() as stack:
        for _ in range(2):
            bus, limits = LocalBus(broker), Limits(SETTINGS)
            await bus.start()
            stack.push_async_callback(bus.close)
            sharing = asyncio.create_task(limits.share(bus))
            stack.callback(sharing.cancel)
            gateways.append((bus, limits))
        (bus, here), (_, there) = gateways
        told = asyncio.Event()
        await asyncio.sleep(0)  # the two begin to listen
        bus.on_broadcast(SPENT_CHANNEL, lambda _: told.set())

        for _ in range(3):
            here.spend_on_login("192.0.2.1")
        async with asyncio.timeout(15):
            await told.wait()
        for limits in (here, there):
            with pytest.raises(Throttled):
                limits.spend_on_login("192.0.2.1")
        there.spend_on_login("192.0.2.2")
        there.spend(None, "192.0.2.1")


def test_addresses_of_one_ipv6_network_spend_together() -> None:
    limits = Limits(SETTINGS)
    for number in range(3):
        limits.spend_on_login(f"2001:db8:0:1::{number + 1:x}")
    with pytest.raises(Throttled):
        limits.spend_on_login("2001:db8:0:1:ffff::1")
    limits.spend_on_login("2001:db8:0:2::1")
    for number in range(4):
        limits.spend_on_login(f"::ffff:192.0.2.{number}")
