"""What is refused before it runs out: revoked sessions and keys, disabled users; known within a second everywhere."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import httpx
import structlog

from libs.common.auth.principal import Principal
from libs.common.bus.protocol import Bus
from libs.common.errors import TelarError
from libs.common.events import Event

MAX_LIFETIME_S = 3600
"""No access token is valid for longer, whatever it claims."""
LEEWAY_S = 30
REREAD_S = 60.0
"""An exclusive queue is empty after a broker's absence; reading again closes the gap."""

_log = structlog.get_logger()


class Revocations:
    """Which sessions, keys and users are refused although their tokens have not run out yet.

    Kept in memory, fed by events and read again from the auth service at start and after a broker's absence. A user's
    entry refuses tokens issued up to its moment; a session's or key's refuses all, because neither comes back and the
    gateway may be signing for it at that very moment. An entry is dropped once no such token can be alive.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._revoked_at: dict[tuple[str, str], float] = {}
        self._changed = asyncio.Event()

    def add(self, scope: str, subject_id: str, revoked_at: float) -> None:
        """Refuse a `session` for good, or what a `user` was issued until `revoked_at` (Unix seconds)."""
        key = (scope, subject_id)
        self._revoked_at[key] = max(revoked_at, self._revoked_at.get(key, 0.0))
        horizon = self._now() - MAX_LIFETIME_S - LEEWAY_S
        for stale in [k for k, at in self._revoked_at.items() if at < horizon]:
            del self._revoked_at[stale]
        self._changed.set()
        self._changed = asyncio.Event()

    def refuses(self, principal: Principal) -> bool:
        if not self._revoked_at:
            return False
        if ("session", principal.session_id) in self._revoked_at:
            return True
        return principal.issued_at <= self._revoked_at.get(("user", principal.user_id), 0.0)

    async def wait_until_refused(self, principal: Principal) -> None:
        """Return when the principal's token is revoked or has run out: open streams and consoles end then."""
        while not self.refuses(principal):
            left_s = principal.expires_at - self._now()
            if left_s <= 0:
                return
            try:
                async with asyncio.timeout(left_s):  # Python 3.11's wait_for can lose a cancellation
                    await self._changed.wait()
            except TimeoutError:
                return


REVOKING_EVENTS = (
    "auth.session.revoked.v1",
    "auth.api_key.revoked.v1",
    "auth.user.updated.v1",
    "auth.user.disabled.v1",
    "auth.user.deleted.v1",
)


def apply_revocation(revocations: Revocations, event: Event) -> None:
    """Enter what an auth event revokes, if anything: its payload's `revokes` is a list of {scope, id, revoked_at}."""
    for entry in event.data.get("revokes") or ():
        revocations.add(str(entry["scope"]), str(entry["id"]), float(entry["revoked_at"]))


async def follow_revocations(
    revocations: Revocations, bus: Bus, read: Callable[[], Awaitable[Iterable[Mapping[str, Any]]]]
) -> None:
    """Keep `revocations` true: listen to auth's events, then `read` what was revoked before, until auth answers."""

    async def heard(event: Event) -> None:
        apply_revocation(revocations, event)

    await bus.listen(REVOKING_EVENTS, heard)
    delay_s = 0.2
    while True:
        try:
            for entry in await read():
                revocations.add(str(entry["scope"]), str(entry["id"]), float(entry["revoked_at"]))
        except Exception as error:  # noqa: BLE001 - whatever auth answers, it is asked again
            tell = _log.debug if isinstance(error, httpx.HTTPError | TelarError) else _log.exception
            tell("revocations_not_read", error=type(error).__name__, retry_in_s=delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 10.0)
            continue
        await asyncio.sleep(REREAD_S)
        delay_s = 0.2
