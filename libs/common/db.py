"""PostgreSQL for one service: engine, sessions, notifications, and the tables that every service's database has."""

import asyncio
import contextlib
import select
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import psycopg
import structlog
from psycopg import sql
from sqlalchemy import MetaData, event, text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.ext.asyncio import AsyncSession as CoreAsyncSession
from sqlalchemy.orm import Session as CoreSession
from sqlalchemy.pool import ConnectionPoolEntry
from sqlmodel import Session
from sqlmodel.ext.asyncio.session import AsyncSession

from libs.common.errors import StorageFull, TelarError, Unavailable
from libs.common.tasks import cancel

COMMON_METADATA = MetaData()
"""Tables of every service (outbox, inbox, operations, leases, …), made by `libs.common.migrations`."""

_FRESH_S = 1.0
"""A connection that was used so lately, and on which the server has said nothing since, is taken to live."""
_STANDALONE = "telar_standalone"

_log = structlog.get_logger()


class DatabaseUnavailable(Unavailable):
    slug = "database-unavailable"
    title = "The service's database does not answer"


class DatabaseFull(StorageFull):
    slug = "database-full"
    title = "The service's database has no space left"


class _Session(Session):
    execute = CoreSession.execute  # SQLModel's own warns at each call; the shared tables are no models


class _AsyncSession(AsyncSession):
    sync_session_class = _Session
    execute = CoreAsyncSession.execute


class Database:
    """One service's PostgreSQL: a pool of `pool_size` checked connections, each waited for at most `pool_wait_s`.

    `url` is `postgresql://user:password@host:port/name`, the driver (psycopg 3) is filled in.
    """

    def __init__(
        self, url: str, *, pool_size: int = 10, pool_wait_s: float = 5.0, application_name: str = "telar"
    ) -> None:
        self._url = make_url(url).set(drivername="postgresql+psycopg")
        self.engine = create_async_engine(
            self._url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=pool_wait_s,
            skip_autocommit_rollback=True,
            connect_args={
                "application_name": application_name,
                "connect_timeout": 5,
                "options": "-c timezone=UTC -c idle_in_transaction_session_timeout=60s -c lock_timeout=15s",
            },
        )
        _ping_rested(self.engine)
        _set_mode(self.engine)
        self.standalone = self.engine.execution_options(**{_STANDALONE: True})
        """The same pool; each statement is a transaction of its own, without the words that begin and end one."""

    def session(self) -> AsyncSession:
        return _AsyncSession(self.engine, expire_on_commit=False)

    def looking(self) -> AsyncSession:
        """A session that changes nothing, each query standing alone."""
        return _AsyncSession(self.standalone, expire_on_commit=False)

    async def ping(self) -> None:
        """Ask the server for a sign of life; raises DatabaseUnavailable."""
        with database_errors():
            async with self.engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()

    def pool_status(self) -> tuple[int, int]:
        """Connections checked out and the pool's size, for metrics."""
        pool: Any = self.engine.pool
        return pool.checkedout(), pool.size()

    @property
    def conninfo(self) -> str:
        """The libpq connection string, password included: for psycopg only, never for a log."""
        return self._url.set(drivername="postgresql").render_as_string(hide_password=False)


def _ping_rested(engine: AsyncEngine) -> None:
    """Ask a connection for a sign of life before it is used, if it has rested or the server has closed it.

    A dead one takes all that rested with it. SQLAlchemy's own `pool_pre_ping` asks each time, which under load is every
    other word to the server.
    """
    pool, dialect = engine.sync_engine.pool, engine.dialect

    def rests(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["rests_since"] = time.monotonic()

    def wakes(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: Any) -> None:
        since = record.info.pop("rests_since", None)
        try:
            if since is None or (time.monotonic() - since < _FRESH_S and _is_quiet(record)):
                return
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error

    event.listen(pool, "checkin", rests)
    event.listen(pool, "checkout", wakes)


def _set_mode(engine: AsyncEngine) -> None:
    """Change a connection's mode when it is taken up for the other one.

    SQLAlchemy's own `isolation_level` sets it at each use and back after it, which costs as much as a small statement.
    """

    def taken_up(connection: Connection) -> None:
        wanted = bool(connection.get_execution_options().get(_STANDALONE))
        driver: Any = connection.connection.dbapi_connection
        if driver.autocommit is not wanted:
            driver.autocommit = wanted

    event.listen(engine.sync_engine, "engine_connect", taken_up)


def _is_quiet(record: ConnectionPoolEntry) -> bool:
    """Whether nothing waits to be read: a server that ends a connection says so, or closes its side."""
    poll = select.poll()
    poll.register(cast("psycopg.AsyncConnection[Any]", record.driver_connection).fileno(), select.POLLIN)
    return not poll.poll(0)


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """Turn a dead or full database into the errors that clients may see; others pass unchanged."""
    try:
        yield
    except (DBAPIError, PoolTimeoutError, psycopg.Error) as error:
        known = as_database_error(error)
        if known is None:
            raise
        raise known from error


def as_database_error(error: BaseException) -> TelarError | None:
    """Say what an exception of the driver means; None if it is not about the database's availability."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(origin, psycopg.errors.DiskFull):
        return DatabaseFull("The database server is out of disk space; nothing was changed", retry_after_s=30)
    if isinstance(error, PoolTimeoutError):
        return DatabaseUnavailable("All connections to it are in use; try again in a moment", retry_after_s=2)
    if isinstance(error, OperationalError | InterfaceError) or isinstance(
        origin, psycopg.OperationalError | psycopg.InterfaceError
    ):
        return DatabaseUnavailable("Nothing was changed; try again in a moment", retry_after_s=2)
    return None


class Notifications:
    """Wakes waiters on PostgreSQL NOTIFY, over one connection of its own that comes back after an outage.

    A notification is only a hint to look at the tables: waiters also wake by time-out, so a lost one costs a delay.
    """

    def __init__(self, database: Database, channels: tuple[str, ...]) -> None:
        self._database = database
        self._channels = channels
        self._waiters: dict[str, set[asyncio.Queue[str]]] = {channel: set() for channel in channels}
        self._task: asyncio.Task[None] | None = None
        self._delay_s = 0.1

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="notifications")

    async def close(self) -> None:
        if self._task is not None:
            await cancel(self._task)
            self._task = None

    @contextlib.contextmanager
    def watch(self, channel: str) -> Iterator[asyncio.Queue[str]]:
        """Give a queue on which notifications' payloads arrive; an empty one means «something may be new, look»."""
        queue: asyncio.Queue[str] = asyncio.Queue(maxsize=1000)
        self._waiters[channel].add(queue)
        try:
            yield queue
        finally:
            self._waiters[channel].discard(queue)

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError) as error:
                _log.warning("notifications_lost", error=type(error).__name__, retry_in_s=self._delay_s)
            await asyncio.sleep(self._delay_s)
            self._delay_s = min(self._delay_s * 2, 5.0)

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(self._database.conninfo, autocommit=True, connect_timeout=5)
        async with connection:
            for channel in self._channels:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                self._deliver(channel, "")  # what was said while nobody listened is in the tables
            self._delay_s = 0.1
            async for notice in connection.notifies():
                self._deliver(notice.channel, notice.payload)

    def _deliver(self, channel: str, payload: str) -> None:
        for queue in self._waiters[channel]:
            with contextlib.suppress(asyncio.QueueFull):  # a full queue wakes its reader anyway
                queue.put_nowait(payload)


async def drain(queue: asyncio.Queue[str], timeout_s: float) -> list[str]:
    """Wait for at least one notification, at most `timeout_s`, and take all that are there."""
    try:
        async with asyncio.timeout(timeout_s):  # Python 3.11's wait_for loses a cancellation that meets a notification
            taken = [await queue.get()]
    except TimeoutError:
        return []
    while not queue.empty():
        taken.append(queue.get_nowait())
    return taken


@contextlib.asynccontextmanager
async def transaction(database: Database) -> AsyncIterator[AsyncSession]:
    """A session that commits at the end of the block, or rolls back on an error; for background work."""
    with database_errors():
        async with database.session() as session, session.begin():
            yield session
