"""What the tests of the guarded client share."""

from collections.abc import AsyncIterator

import pytest

from libs.common.http import GuardedClient
from tests.contract.common.raw_server import LOOPBACK, QUICK, lookup


@pytest.fixture
async def client() -> AsyncIterator[GuardedClient]:
    async with GuardedClient(LOOPBACK, lookup=lookup, limits=QUICK) as guarded:
        yield guarded
