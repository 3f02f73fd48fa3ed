"""The connection to the job store."""

from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient

from libs.common.clock import SystemClock
from services.fetcher.errors import job_store_errors

_ANSWER_MS = 30_000
"""An answer that does not come (a server that hangs, a network that swallows it) must not stop a worker for ever."""


class MongoStore:
    """One database of one MongoDB-compatible server; must be made inside the event loop that uses it."""

    def __init__(self, uri: str, database: str, *, timeout_s: float = 5.0) -> None:
        self._client: Any = AsyncIOMotorClient(
            uri,
            tz_aware=True,
            appname="telar-fetcher",
            serverSelectionTimeoutMS=int(timeout_s * 1000),
            connectTimeoutMS=int(timeout_s * 1000),
            socketTimeoutMS=_ANSWER_MS,
        )
        self.database: Any = self._client[database]
        self._clock = SystemClock()

    def now_ms(self) -> int:
        return int(self._clock.now().timestamp() * 1000)

    async def ping(self) -> None:
        """Ask the server for a sign of life; raises JobStoreUnavailable."""
        with job_store_errors():
            await self.database.command("ping")

    def close(self) -> None:
        self._client.close()


def equal(**values: Any) -> dict[str, Any]:
    """A query for these values.

    Written out because `{field: value}` also means «or an array that holds it»; nx-27017 reads the whole collection
    for that, whatever index there is.
    """
    return {name: {"$eq": value} for name, value in values.items()}
