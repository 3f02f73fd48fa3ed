"""Accounts that never came by event are read from auth, once the service hears events."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence

import pytest
from sqlalchemy import select

from libs.common.accounts import follow_accounts
from libs.common.bus import LocalBus
from libs.common.db import Database
from libs.common.errors import Unavailable
from libs.common.events import Event
from libs.common.quotas import accounts_table, on_user_event, owner_named
from libs.common.testing.serving import user_event
from libs.common.uow import UnitOfWorkFactory


class Auth:
    """Has accounts, of which it gives two at a time; does not answer the first call, and the second not in JSON."""

    def __init__(self, *accounts: Event) -> None:
        self._accounts = sorted(accounts, key=lambda account: account.subject)
        self.calls = 0

    async def read(self, after: str | None) -> Sequence[Event]:
        self.calls += 1
        if self.calls == 1:
            raise Unavailable
        if self.calls == 2:
            raise json.JSONDecodeError("Expecting value", "<html>", 0)
        return [account for account in self._accounts if after is None or account.subject > after][:2]


@pytest.fixture
def uow(database: Database) -> UnitOfWorkFactory:
    return UnitOfWorkFactory(database, source="/telar/tests")


async def ignore(_event: object) -> None:
    return


async def test_all_accounts_are_kept_once_the_queue_stands_and_newer_copies_stay(
    uow: UnitOfWorkFactory, eventually: Callable[..., Awaitable[None]]
) -> None:
    async def keep(accounts: Sequence[Event]) -> None:
        async with uow() as unit:
            for account in accounts:
                await on_user_event(unit, account)
            await unit.commit()

    async with uow() as unit:
        await on_user_event(unit, user_event("id-b", external_id="newer", sequence=9))
        await unit.commit()
    auth = Auth(*(user_event(f"id-{name}", external_id=f"ext-{name}", sequence=3) for name in "abcde"))
    bus = LocalBus()
    await bus.start()
    following = asyncio.create_task(follow_accounts(bus, "tests", auth.read, keep))
    try:
        await asyncio.sleep(0.5)
        assert auth.calls == 0  # what is said meanwhile would be missed again
        await bus.subscribe("tests", ("auth.#",), ignore, ignore)

        async def are_kept() -> bool:
            return await owner_named(uow, "ext-e") == "id-e"

        await eventually(are_kept)
        async with uow() as unit:
            rows = await unit.session.execute(select(accounts_table.c.owner_id, accounts_table.c.external_id))
        found = {row.owner_id: row.external_id for row in rows}
        assert found == {"id-a": "ext-a", "id-b": "newer", "id-c": "ext-c", "id-d": "ext-d", "id-e": "ext-e"}
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await bus.close()
