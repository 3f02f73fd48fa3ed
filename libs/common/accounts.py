"""Copies of auth's accounts kept whole: some changes never come by event.

What auth said before a service's queue stood, or after the backup that its database was restored from, is lost to it.
So each service also reads all accounts from auth, once it hears events and then from time to time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import httpx
import structlog

from libs.common.bus import Bus, BusUnavailable
from libs.common.errors import TelarError
from libs.common.events import Event

READ_AGAIN_S = 600.0
ACCOUNT_EVENT = "auth.user.updated.v1"
"""As this event each account is read: it tells of the whole of it."""

ReadAccounts = Callable[[str | None], Awaitable[Sequence[Event]]]
"""Some accounts in the order of their ids, from behind the given one; none after the last."""
KeepAccounts = Callable[[Sequence[Event]], Awaitable[None]]

_log = structlog.get_logger()


async def follow_accounts(bus: Bus, service: str, read: ReadAccounts, keep: KeepAccounts) -> None:
    """Give `keep` all accounts, again and again, until cancelled; what is older than what it has changes nothing."""
    delay_s = 0.2
    while True:
        try:
            await _read_all(bus, service, read, keep)
        except Exception as error:  # noqa: BLE001 - whatever auth answers, it is asked again
            tell = _log.debug if isinstance(error, httpx.HTTPError | TelarError) else _log.exception
            tell("accounts_not_read", error=type(error).__name__, retry_in_s=delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 2.0)
            continue
        await asyncio.sleep(READ_AGAIN_S)
        delay_s = 0.2


async def _read_all(bus: Bus, service: str, read: ReadAccounts, keep: KeepAccounts) -> None:
    if not (await bus.queues([service]))[service].consumers:
        raise BusUnavailable("the service's queue does not stand yet")
    after = None
    while accounts := await read(after):
        await keep(accounts)
        after = accounts[-1].subject
