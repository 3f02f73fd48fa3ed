"""One connection to RabbitMQ that comes back by itself, and what is kept attached to it."""

import asyncio
import random
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import structlog
from aio_pika import Connection
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelPreconditionFailed
from yarl import URL

_log = structlog.get_logger()
_CONNECT_TIMEOUT_S = 5.0
_FIRST_TRY_S = 2.0
_CLOSE_TIMEOUT_S = 1.0
_ATTACH_TIMEOUT_S = 15.0
_HEARTBEAT_S = 10


class BrokerLost(Exception):
    """The connection or the channel is gone, or never came up."""


def asked_to_stop() -> bool:
    """Whether this task was cancelled, even if aio-pika swallowed the CancelledError on its way (it may)."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def broker_faults() -> Iterator[None]:
    """Turn whatever aio-pika raises for a lost broker into BrokerLost.

    aiormq cancels the tasks of a closing channel, so that a CancelledError may be the broker's doing: it is only ours
    when this very task was asked to cancel.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        if asked_to_stop():
            raise
        raise BrokerLost("the channel was closed") from error
    # TimeoutError is an OSError; aiormq ends its stream of frames when a connection breaks in its handshake.
    except (AMQPError, OSError, RuntimeError, StopAsyncIteration) as error:
        raise BrokerLost(f"{type(error).__name__}: {error}") from error


class Backoff:
    """Growing, jittered delays: 0.1 s doubling to 5 s, half of each random."""

    def __init__(self) -> None:
        self._attempt = 0

    def reset(self) -> None:
        self._attempt = 0

    async def wait(self) -> None:
        ceiling_s = min(5.0, 0.1 * 2.0**self._attempt)
        self._attempt = min(self._attempt + 1, 10)
        await asyncio.sleep(ceiling_s * random.uniform(0.5, 1.0))  # noqa: S311  # spreads load, guards nothing


class Attachment(Protocol):
    """Something that lives on a channel and is set up anew after every loss."""

    @property
    def name(self) -> str: ...

    async def attach(self, connection: AbstractConnection) -> Awaitable[object]:
        """Open the channel, declare, consume; give back what completes when the channel is lost."""
        ...

    async def detach(self) -> None:
        """Let go of what attach made, also half of it; called after every attach."""


class Kept:
    """An attachment under care: `settled` once the first try has succeeded or failed."""

    def __init__(self, attachment: Attachment, task: asyncio.Task[None], settled: asyncio.Event) -> None:
        self._attachment = attachment
        self._task = task
        self.settled = settled

    async def stop(self) -> None:
        """Detach for good. Detaching again completes what a cancelled detach left behind."""
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._attachment.detach()


class Link:
    """Keeps one connection up from `start` to `close`, and its attachments attached."""

    def __init__(self, url: str, name: str) -> None:
        parsed = URL(url)
        self._url = parsed.update_query({"name": name, "heartbeat": str(_HEARTBEAT_S), **parsed.query})
        self._address = f"{parsed.host}:{parsed.port or ''}{parsed.path}"  # the password stays out of every log line
        self._name = name
        self._connection: AbstractConnection | None = None
        self._connected = asyncio.Event()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin connecting and wait a little for the first try to succeed or fail."""
        self._task = asyncio.create_task(self._run(), name=f"bus-link-{self._name}")
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_TRY_S):
                await self._tried.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def channel(self) -> AbstractChannel:
        """Open a channel without confirms; raises BrokerLost."""
        connection = self._connection
        if connection is None:
            raise BrokerLost("not connected")
        with broker_faults():
            return await connection.channel(publisher_confirms=False)

    def blocked(self) -> bool:
        """Whether the broker refuses to read from this connection (memory or disk alarm).

        aiormq tells only by making `ready()` wait; so it is stepped once, to see whether it would.
        """
        transport = self._connection.transport if self._connection is not None else None
        if transport is None:
            return True
        probe = transport.connection.ready().__await__()
        try:
            next(probe)
        except StopIteration:
            return False
        probe.close()
        return True

    async def unblocked(self) -> None:
        """Wait until the broker reads from this connection again."""
        transport = self._connection.transport if self._connection is not None else None
        if transport is not None:
            await transport.connection.ready()

    def keep(self, attachment: Attachment) -> Kept:
        settled = asyncio.Event()
        task = asyncio.create_task(self._keep(attachment, settled), name=f"bus-keep-{attachment.name}")
        return Kept(attachment, task, settled)

    async def _run(self) -> None:
        backoff = Backoff()
        while not asked_to_stop():
            # Made here rather than by aio_pika.connect: that would leave a connection that failed to be closed by the
            # garbage collector, wherever it happens to run.
            connection = Connection(self._url)
            try:
                with broker_faults():
                    await connection.connect(timeout=_CONNECT_TIMEOUT_S)
                _log.info("bus_connected", broker=self._address, link=self._name)
                self._connection = connection
                self._connected.set()
                self._tried.set()
                backoff.reset()
                await until_lost(_gone(connection))
                _log.warning("bus_connection_lost", broker=self._address, link=self._name)
            except BrokerLost as error:
                _log.warning("bus_unreachable", broker=self._address, link=self._name, reason=str(error))
            except Exception:  # noqa: BLE001 - the link outlives any surprise; it is logged with its traceback
                _log.exception("bus_link_failed", broker=self._address, link=self._name)
            finally:
                self._connected.clear()
                self._connection = None
                self._tried.set()
                await close_quietly(connection)
            await backoff.wait()

    async def _keep(self, attachment: Attachment, settled: asyncio.Event) -> None:
        backoff = Backoff()
        while not asked_to_stop():
            await self._connected.wait()
            connection = self._connection
            try:
                if connection is not None:
                    with broker_faults():
                        async with asyncio.timeout(_ATTACH_TIMEOUT_S):
                            lost = await attachment.attach(connection)
                    settled.set()
                    backoff.reset()
                    await until_lost(lost)
                    _log.warning("bus_channel_lost", attachment=attachment.name)
            except BrokerLost as error:
                _report(attachment.name, error)
            except Exception:  # noqa: BLE001 - as above
                _log.exception("bus_attachment_failed", attachment=attachment.name)
            finally:
                settled.set()
                await attachment.detach()
            await backoff.wait()


async def until_lost(lost: Awaitable[object]) -> None:
    """Wait for a loss, unless this task was cancelled before."""
    waiting = asyncio.ensure_future(lost)
    if asked_to_stop():
        waiting.cancel()
        raise asyncio.CancelledError
    await waiting


async def _gone(connection: AbstractConnection) -> None:
    """Wait until the connection is gone; aio-pika's own `closed()` tells only of a close that we asked for."""
    if connection.transport is not None:
        await asyncio.wait([asyncio.ensure_future(connection.transport.connection.closing)])


async def close_quietly(closable: AbstractConnection | AbstractChannel | None) -> None:
    """Close what may be closed, broken or half open already."""
    if closable is None or closable.is_closed:
        return
    with suppress(BrokerLost), broker_faults():
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await closable.close()


def _report(name: str, error: BrokerLost) -> None:
    if isinstance(error.__cause__, ChannelPreconditionFailed):
        _log.error(
            "bus_declaration_refused",
            attachment=name,
            reason=str(error),
            what_to_do="The queue or exchange exists with other arguments. Let its consumers empty it, delete it "
            "(rabbitmqctl delete_queue, or the management page), and it is declared anew within seconds.",
        )
    else:
        _log.warning("bus_attach_failed", attachment=name, reason=str(error))
