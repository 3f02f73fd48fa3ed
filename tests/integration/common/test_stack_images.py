from collections.abc import AsyncIterator, Iterator

import aio_pika
import psycopg
import pytest

from libs.common.testing import stack

pytestmark = [pytest.mark.docker, pytest.mark.long]


@pytest.fixture(scope="module")
def broker() -> Iterator[stack.RabbitMq]:
    with stack.run_rabbitmq() as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[stack.PostgresContainer]:
    with stack.run_postgresql() as running:
        yield running


@pytest.fixture
async def quorum_queue(broker: stack.RabbitMq) -> AsyncIterator[str]:
    name = "orders"
    async with await aio_pika.connect(broker.amqp_url) as connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    broker.sync_register()
    yield name
    async with await aio_pika.connect(broker.amqp_url) as connection:
        channel = await connection.channel()
        await channel.queue_delete(name)


async def publish(url: str, queue: str, body: bytes) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key=queue, mandatory=True, timeout=10)


async def take(url: str, queue: str) -> bytes:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        declared = await channel.get_queue(queue)
        message = await declared.get(timeout=10)
        await message.ack()
        return message.body


@pytest.mark.rabbitmq
@pytest.mark.parametrize("body", [b"first kill", b"second kill"])
async def test_a_confirmed_message_survives_sigkill_of_the_broker(
    broker: stack.RabbitMq, quorum_queue: str, body: bytes
) -> None:
    url = broker.amqp_url
    await publish(url, quorum_queue, body)

    broker.kill()
    with pytest.raises(OSError, match=r"."):
        await aio_pika.connect(url, timeout=2)
    broker.start()
    broker.wait_ready(timeout_s=60)

    assert broker.amqp_url == url
    assert await take(url, quorum_queue) == body


@pytest.mark.rabbitmq
def test_the_broker_can_be_administered_from_a_test(broker: stack.RabbitMq) -> None:
    assert "telar" in broker.ctl("list_users")


def test_a_committed_row_survives_a_restart_of_postgresql(server: stack.PostgresContainer) -> None:
    with psycopg.connect(server.dsn) as connection:
        connection.execute("CREATE TABLE kept (id int PRIMARY KEY)")
        connection.execute("INSERT INTO kept VALUES (7)")

    server.restart()

    with psycopg.connect(server.dsn) as connection:
        assert connection.execute("SELECT id FROM kept").fetchall() == [(7,)]


def test_a_committed_row_survives_sigkill_of_postgresql(server: stack.PostgresContainer) -> None:
    with psycopg.connect(server.dsn) as connection:
        connection.execute("CREATE TABLE crashed (id int PRIMARY KEY)")
        connection.execute("INSERT INTO crashed VALUES (9)")

    server.kill()
    server.start()
    server.wait_ready()

    with psycopg.connect(server.dsn) as connection:
        assert connection.execute("SELECT id FROM crashed").fetchall() == [(9,)]


def test_a_missing_engine_skips_on_a_desk_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    assert "engine.sh" in (stack.engine_available() or "")

    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"engine\.sh"):  # that it skips is what is proven here
        stack.require_engine()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"engine\.sh"):
        stack.require_engine()
