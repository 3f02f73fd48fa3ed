from collections.abc import Iterator

import pytest

from libs.common.testing import stack


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[stack.RabbitMq]:
    with stack.run_rabbitmq() as broker:
        yield broker
