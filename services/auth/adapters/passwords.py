"""Password hashing with pwdlib: argon2id for new hashes, bcrypt only to verify old ones; bounded concurrency."""

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.bcrypt import BcryptHasher

from services.auth.domain import MAX_PASSWORD_BYTES
from services.auth.errors import HashingBusy

_BCRYPT_MAX_BYTES = 72

T = TypeVar("T")


class PwdlibPasswords:
    """`concurrency` threads do the hashing (argon2 lets go of the GIL); at most `queue` callers wait for them.

    `argon2` is what a new hash costs: RFC 9106's second recommended set, unless tests ask for less.
    """

    def __init__(self, *, concurrency: int, queue: int, argon2: Argon2Hasher | None = None) -> None:
        self._hasher = PasswordHash((argon2 or Argon2Hasher(), BcryptHasher()))
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="password")
        self._places = concurrency + queue
        self._taken = 0
        self._dummy = self._hasher.hash(secrets.token_hex(16))

    async def hash(self, password: str) -> str:
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password: str, stored: str | None) -> tuple[bool, str | None]:
        if len(password.encode()) > MAX_PASSWORD_BYTES:
            password, stored = "", None
        right, upgraded = await self._run(lambda: self._check(password, stored or self._dummy))
        return right and stored is not None, upgraded if stored is not None else None

    def _check(self, password: str, stored: str) -> tuple[bool, str | None]:
        if stored.startswith("$2") and len(password.encode()) > _BCRYPT_MAX_BYTES:
            stored = self._dummy  # bcrypt cannot tell such passwords apart; none was ever stored
        return self._hasher.verify_and_update(password, stored)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._taken >= self._places:
            raise HashingBusy("Try again in a few seconds", retry_after_s=3)
        self._taken += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._taken -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
