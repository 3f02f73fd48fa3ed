import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aio_pika
import pytest
import structlog
from yarl import URL

from libs.common.bus import AmqpBus, BusUnavailable, Unroutable, create_bus
from libs.common.testing.bus_contract import RETRY, Inbox, Names, until
from libs.common.testing.certificates import self_signed
from libs.common.testing.stack import RabbitMq

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
async def channel(rabbitmq: RabbitMq) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(rabbitmq.amqp_url) as connection:
        yield await connection.channel()


@pytest.fixture
async def names(channel: aio_pika.abc.AbstractChannel) -> AsyncIterator[Names]:
    names = Names()
    yield names
    await channel.queue_delete(f"telar.{names.queue()}")
    await channel.queue_delete(f"telar.{names.queue()}.dead")


@pytest.fixture
async def bus(rabbitmq: RabbitMq) -> AsyncIterator[AmqpBus]:
    bus = AmqpBus(rabbitmq.amqp_url, source="test", retry=RETRY)
    await bus.start()
    yield bus
    await bus.close()


async def test_a_queue_declared_otherwise_is_named_with_what_to_do_and_taken_over_once_deleted(
    bus: AmqpBus, names: Names, channel: aio_pika.abc.AbstractChannel
) -> None:
    inbox, heard = Inbox(), Inbox()
    await channel.declare_queue(f"telar.{names.queue()}", durable=True)
    with structlog.testing.capture_logs() as logs:
        await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        refused = [line for line in logs if line["event"] == "bus_declaration_refused"]
    assert names.queue() in refused[0]["attachment"]
    assert "delete_queue" in refused[0]["what_to_do"]
    await bus.listen([names.all], heard.handle)
    await bus.publish(names.event("s", 1))  # the rest of the bus is none the worse
    await until(lambda: heard.numbers("s") == [1])
    await channel.queue_delete(f"telar.{names.queue()}")
    await expect_handled(bus, names, inbox)


async def test_a_queue_deleted_under_its_consumer_is_declared_again(
    bus: AmqpBus, names: Names, channel: aio_pika.abc.AbstractChannel
) -> None:
    inbox = Inbox()
    await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
    await channel.queue_delete(f"telar.{names.queue()}")
    await expect_handled(bus, names, inbox)


async def test_closing_ends_whatever_a_queue_lost_at_the_same_time_is_doing(
    rabbitmq: RabbitMq, names: Names, channel: aio_pika.abc.AbstractChannel
) -> None:
    for round_trips in range(30):
        before = asyncio.all_tasks()
        bus, inbox = AmqpBus(rabbitmq.amqp_url, source="test", retry=RETRY), Inbox()
        await bus.start()
        await bus.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
        await channel.queue_delete(f"telar.{names.queue()}")
        for _ in range(4 * round_trips):  # so that it is closed at another moment of its declaring again
            await channel.get_exchange("telar.events")
        async with asyncio.timeout(8):
            await bus.close()
        assert [task for task in asyncio.all_tasks() - before if "libs/common/bus" in repr(task)] == []


async def expect_handled(bus: AmqpBus, names: Names, inbox: Inbox) -> None:
    async with asyncio.timeout(15):
        while not inbox.events:
            with suppress(Unroutable, BusUnavailable):
                await bus.publish(names.event("again"))
            await asyncio.sleep(0.05)
    assert {event.subject for event in inbox.events} == {"again"}


async def test_one_event_published_twice_at_once_is_returned_twice(bus: AmqpBus, names: Names) -> None:
    event = names.event()
    results = await asyncio.gather(*(bus.publish(event) for _ in range(20)), return_exceptions=True)
    assert [type(result) for result in results] == [Unroutable] * 20


async def test_no_log_line_shows_the_password(
    rabbitmq: RabbitMq, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    secret = "canary-4711"
    wrong = str(URL(rabbitmq.amqp_url).with_password(secret))
    nowhere = f"amqp://telar:{secret}@127.0.0.1:1/"
    with structlog.testing.capture_logs() as logs:
        for url in (wrong, nowhere):
            bus = create_bus(url, source="test")
            await bus.start()
            with pytest.raises(BusUnavailable):
                await bus.publish(names.event())
            await bus.close()
            assert secret not in repr(bus)
    assert any(line["event"] == "bus_unreachable" for line in logs)
    assert secret not in repr(logs)
    assert secret not in caplog.text


@pytest.fixture
async def tls_front(rabbitmq: RabbitMq, tmp_path: Path) -> AsyncIterator[tuple[int, Path]]:
    """A TLS port before the broker, and the CA that vouches for it."""
    certificate_file, key_file = self_signed(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file)
    target = URL(rabbitmq.amqp_url)
    relays: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(target.host, target.port)
        for pair in ((reader, far_writer), (far_reader, writer)):
            relays.add(asyncio.create_task(copy(*pair)))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1], certificate_file
    server.close()
    if relays:
        await asyncio.wait(relays, timeout=5)
    await server.wait_closed()


async def test_amqps_works_with_the_given_ca_and_is_refused_without(
    rabbitmq: RabbitMq, names: Names, tls_front: tuple[int, Path]
) -> None:
    port, ca_file = tls_front
    url = URL(rabbitmq.amqp_url).with_scheme("amqps").with_host("127.0.0.1").with_port(port)
    trusting, inbox = create_bus(str(url.with_query(cafile=str(ca_file))), source="test"), Inbox()
    await trusting.start()
    await trusting.subscribe(names.queue(), [names.all], inbox.handle, inbox.bury)
    await trusting.publish(names.event("s", 1))
    await until(lambda: inbox.numbers("s") == [1])
    await trusting.close()
    doubting = create_bus(str(url), source="test")
    await doubting.start()
    assert not doubting.ready()
    await doubting.close()
