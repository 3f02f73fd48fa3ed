from collections.abc import AsyncIterator, Iterator

import pytest

from libs.common.db import Database
from libs.common.testing import stack
from tests.integration.common.operations_lab import Lab


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[stack.RabbitMq]:
    with stack.run_rabbitmq() as broker:
        yield broker


@pytest.fixture
async def lab(database: Database) -> AsyncIterator[Lab]:
    lab = Lab(database)
    await lab.start()
    yield lab
    await lab.close()
