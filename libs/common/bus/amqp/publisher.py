"""Publishing with confirms: pipelined on one channel, written in call order, never silently lost."""

import asyncio
import itertools
from collections.abc import Awaitable
from typing import cast

from aio_pika import DeliveryMode
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import DeliveryError, PublishError
from aiormq import Channel
from pamqp.commands import Basic

from libs.common.bus.amqp.link import BrokerLost, Link, broker_faults, close_quietly
from libs.common.bus.amqp.topology import EVENTS_EXCHANGE, declare_events, queue_name
from libs.common.bus.protocol import BusUnavailable, Unroutable
from libs.common.events import CONTENT_TYPE, Event


class Publisher:
    """The one confirming channel of a process."""

    name = "publisher"

    def __init__(self, link: Link, *, source: str, timeout_s: float) -> None:
        self._link = link
        self._source = source
        self._timeout_s = timeout_s
        self._channel: AbstractChannel | None = None
        self._open: Channel | None = None
        self._turnstile = asyncio.Lock()
        self._numbers = itertools.count(1)

    def ready(self) -> bool:
        return self._open is not None and not self._link.blocked()

    async def attach(self, connection: AbstractConnection) -> Awaitable[object]:
        self._channel = channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        await declare_events(channel)
        self._open = cast("Channel", await channel.get_underlay_channel())
        return channel.closed()

    async def detach(self) -> None:
        channel, self._channel, self._open = self._channel, None, None
        await close_quietly(channel)

    async def publish(self, event: Event) -> None:
        """Raises BusUnavailable or Unroutable, as the protocol says."""
        await self._send(EVENTS_EXCHANGE, event.type, event.to_json(), event.id, event.type)

    async def redeliver(self, queue: str, body: bytes) -> None:
        await self._send("", queue_name(queue), body, "redelivery", None)

    async def _send(self, exchange: str, routing_key: str, body: bytes, event_id: str, event_type: str | None) -> None:
        channel = self._open
        if channel is None:
            raise BusUnavailable("not connected to the broker")
        properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            delivery_mode=DeliveryMode.PERSISTENT,
            message_type=event_type,
            app_id=self._source,
            # aiormq finds the publish that was returned by this id: two of one event under way must not share it.
            message_id=f"{event_id}:{next(self._numbers)}",
        )
        try:
            with broker_faults():
                async with asyncio.timeout(self._timeout_s):
                    # Nothing is written to a blocked connection: it would be published after its sender gave up.
                    # The turnstile is first come, first served, so that the order of calls survives the wait.
                    async with self._turnstile:
                        await self._link.unblocked()
                    # aio-pika's exchanges wait here until the message is written, so that each is a call to the system.
                    await channel.basic_publish(
                        body,
                        exchange=exchange,
                        routing_key=routing_key,
                        properties=properties,
                        mandatory=True,
                        wait=False,
                    )
        except BrokerLost as error:
            cause = error.__cause__
            if isinstance(cause, PublishError):
                raise Unroutable(f"no queue is bound for {routing_key}") from error
            if isinstance(cause, DeliveryError):
                raise BusUnavailable("the broker refused the message") from error
            if isinstance(cause, TimeoutError):
                raise BusUnavailable(f"no confirm within {self._timeout_s:g} s") from error
            raise BusUnavailable("the broker went away before it confirmed") from error
