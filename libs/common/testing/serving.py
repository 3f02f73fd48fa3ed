"""A service run in this process for its contract tests: real database, real bus, tokens of a test issuer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
from fastapi import FastAPI

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.events import Event
from libs.common.quotas import RESOURCES
from libs.common.testing.identity import TestIssuer


@dataclass
class Served:
    """A running service: calls reach it through `http`, `heard` is what it said on the bus."""

    app: FastAPI
    http: httpx.AsyncClient
    issuer: TestIssuer
    bus: LocalBus
    settings: Any
    heard: list[Event]

    def as_user(self, user_id: str, **options: Any) -> dict[str, str]:
        """Headers that speak for a user; `role` and `scopes` as options."""
        return self.issuer.headers(user_id, **options)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What the service's database answers to a query that changes nothing."""
        with psycopg.connect(self.settings.database_url) as connection:
            connection.read_only = True
            return connection.execute(query.encode(), values).fetchall()

    async def change(self, query: str, *values: Any) -> int:
        """Change rows behind the service's back; gives how many.

        In a thread: the service may hold their locks, and lets go of them in this very event loop.
        """

        def run() -> int:
            with psycopg.connect(self.settings.database_url) as connection:
                return connection.execute(query.encode(), values).rowcount

        return await asyncio.to_thread(run)

    def used(self, owner_id: str) -> dict[str, int]:
        """What an owner uses in the service, by resource, without what is zero."""
        found = self.rows("SELECT used FROM quota_accounts WHERE owner_id = %s", owner_id)
        return {name: count for name, count in (found[0][0] if found else {}).items() if count}


def user_event(
    user_id: str, *, external_id: str | None = None, sequence: int = 1, disabled: bool = False, **quota: int
) -> Event:
    """What auth says of a user, whole; limits that are not named are 0."""
    return Event(
        type="auth.user.updated.v1",
        subject=user_id,
        source="/telar/auth",
        time=SystemClock().now(),
        data={
            "username": f"name-of-{user_id}",
            "email": f"{user_id}@example.org",
            "external_id": external_id,
            "role": "CLIENT",
            "disabled": disabled,
            "quota": {**dict.fromkeys(RESOURCES, 0), **quota},
        },
        owner=user_id,
        sequence=sequence,
    )


@contextlib.asynccontextmanager
async def serving(
    name: str,
    create_app: Callable[..., FastAPI],
    migrate: Callable[[Any], Awaitable[None]],
    settings: Any,
    *,
    timeout_s: float = 5.0,
) -> AsyncIterator[Served]:
    """Migrate the service's database and run it until the block ends; a dead letter of its events fails the test."""
    await migrate(settings)
    bus, issuer = LocalBus(), TestIssuer()
    heard: list[Event] = []

    async def hear(event: Event) -> None:
        heard.append(event)

    async def lose(letter: Any) -> None:
        raise AssertionError(letter.reason)

    app = create_app(settings, bus=bus, verifier=issuer.verifier())
    await bus.subscribe("tests", (f"{name}.#",), hear, lose)
    await bus.start()
    try:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{name}", timeout=timeout_s) as http:
                yield Served(app, http, issuer, bus, settings, heard)
    finally:
        await bus.close()
