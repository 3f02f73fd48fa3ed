from collections.abc import Awaitable, Callable

import aio_pika
import pytest

from libs.common.bus import AmqpBus

Eventually = Callable[..., Awaitable[None]]


@pytest.mark.parametrize("surprise", [StopAsyncIteration(), LookupError("of the library's")], ids=repr)
async def test_a_link_outlives_whatever_an_attempt_to_connect_raises(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually, surprise: Exception
) -> None:
    tried = 0

    async def connect(_self: aio_pika.Connection, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as it is there
        nonlocal tried
        tried += 1
        assert timeout is not None
        raise surprise

    monkeypatch.setattr(aio_pika.Connection, "connect", connect)
    bus = AmqpBus("amqp://guest:guest@127.0.0.1:1/", source="test")
    await bus.start()
    links = 2
    await eventually(lambda: tried >= 3 * links, 60)
    assert not bus.ready()
    await bus.close()
