"""Throttling of guesses: wrong passwords are counted for the name from its network, and for the network."""

from datetime import timedelta

from libs.common.uow import UnitOfWorkFactory
from services.auth import events
from services.auth.domain import key_digest, lock_until, name_key, network_of
from services.auth.errors import TooManyFailures
from services.auth.repository import AuthRepository
from services.auth.service.audit import SYSTEM, record
from services.auth.settings import AuthSettings


class Throttle:
    """Wherever a password is asked for: `require_free` before it is checked, `failed` when it was wrong."""

    def __init__(self, uow: UnitOfWorkFactory, settings: AuthSettings) -> None:
        self._uow = uow
        self._settings = settings

    async def require_free(self, name: str, address: str) -> None:
        """Raise TooManyFailures while the name from this network, or the network, has to wait."""
        async with self._uow() as uow:
            now = uow.clock.now()
            locked = await AuthRepository(uow.session).locked_until((account_key(name, address), _key(address)), now)
        if locked is not None:
            wait_s = (locked - now).total_seconds()
            raise TooManyFailures(f"Try again in {max(1, round(wait_s))} s", retry_after_s=wait_s)

    async def failed(self, name: str, address: str) -> None:
        """Count a failure for the name from this network and for the network, and lock what has had too many."""
        settings = self._settings
        async with self._uow() as uow:
            repository = AuthRepository(uow.session)
            now = uow.clock.now()
            window = timedelta(seconds=settings.failure_window_s)
            locked: list[tuple[str, int]] = []
            for key, allowed in (
                (account_key(name, address), settings.account_failures),
                (_key(address), settings.network_failures),
            ):
                failures = await repository.count_failure(key, now, window)
                until = lock_until(
                    failures, allowed=allowed, now=now, first_s=settings.lock_s, longest_s=settings.failure_window_s
                )
                if until is None:
                    continue
                await repository.lock_failures(key, until)
                if failures == allowed:
                    locked.append((key, failures))
            for key, failures in locked:
                uow.add_event(
                    events.LoginLocked(network=network_of(address), failures=failures), subject=key_digest(key)
                )
                await record(uow, SYSTEM, "login.locked", key, failures=failures)
            await uow.commit()


def account_key(name: str, address: str) -> str:
    return f"account:{name_key(name)}@{network_of(address)}"


def _key(address: str) -> str:
    return f"network:{network_of(address)}"
