from collections.abc import AsyncIterator

import aio_pika
import pytest

from libs.common.bus import AmqpBus
from libs.common.testing.bus_contract import RETRY, BusContract, MakeBus, Names
from libs.common.testing.stack import RabbitMq

pytestmark = pytest.mark.rabbitmq
_QUEUES = ("main", "word", "many", "exact", "one", "other", "shared", "own")


class TestAmqpBus(BusContract):
    @pytest.fixture
    async def names(self, rabbitmq: RabbitMq) -> AsyncIterator[Names]:
        names = Names()
        yield names
        async with await aio_pika.connect(rabbitmq.amqp_url) as connection:
            channel = await connection.channel()
            for name in _QUEUES:
                await channel.queue_delete(f"telar.{names.queue(name)}")
                await channel.queue_delete(f"telar.{names.queue(name)}.dead")

    @pytest.fixture
    def make_bus(self, rabbitmq: RabbitMq) -> MakeBus:
        return lambda: AmqpBus(rabbitmq.amqp_url, source="test", retry=RETRY)
