import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import bcrypt
import pytest

from services.auth.adapters.passwords import PwdlibPasswords
from services.auth.errors import HashingBusy


@pytest.fixture
def passwords() -> Iterator[PwdlibPasswords]:
    made = PwdlibPasswords(concurrency=2, queue=3)
    yield made
    made.close()


class _Gate:
    """Stands in for the hasher: counts who is inside, and lets nobody out before it is opened."""

    def __init__(self, passwords: PwdlibPasswords) -> None:
        self.inside = 0
        self.most = 0
        self.open = threading.Event()
        self._lock = threading.Lock()
        passwords._check = self._wait  # type: ignore[method-assign] # the work is replaced, the bounds are real

    def _wait(self, _password: str, _stored: str) -> tuple[bool, str | None]:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.open.wait(10)
        with self._lock:
            self.inside -= 1
        return True, None


async def test_a_hash_is_argon2id_and_salted(passwords: PwdlibPasswords) -> None:
    first, second = await passwords.hash("a password"), await passwords.hash("a password")
    assert first.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert first != second
    assert await passwords.verify("a password", first) == (True, None)
    assert await passwords.verify("a passwore", first) == (False, None)


async def test_an_older_bcrypt_hash_verifies_and_gives_its_successor(passwords: PwdlibPasswords) -> None:
    old = bcrypt.hashpw(b"a password", bcrypt.gensalt(4)).decode()
    right, successor = await passwords.verify("a password", old)
    assert right
    assert successor is not None
    assert successor.startswith("$argon2id$")
    assert await passwords.verify("wrong", old) == (False, None)


async def test_without_a_stored_hash_the_same_work_is_done_and_nothing_is_right(passwords: PwdlibPasswords) -> None:
    checked: list[str] = []
    original = passwords._check

    def spy(password: str, stored: str) -> tuple[bool, str | None]:
        checked.append(stored)
        return original(password, stored)

    passwords._check = spy  # type: ignore[method-assign] # only watched
    assert await passwords.verify("a password", None) == (False, None)
    assert await passwords.verify("x" * 2000, await passwords.hash("x" * 1000)) == (False, None)
    assert len(checked) == 2
    assert all(stored.startswith("$argon2id$") for stored in checked)


async def test_bcrypt_never_sees_more_than_it_can_hold(passwords: PwdlibPasswords) -> None:
    old = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert (await passwords.verify("x" * 72, old))[0] is True
    for longer in ("x" * 73, "x" * 72 + "\0", "é" * 37):
        assert await passwords.verify(longer, old) == (False, None)


async def test_few_hashes_at_a_time_and_few_who_wait(passwords: PwdlibPasswords, eventually: Any) -> None:
    gate = _Gate(passwords)
    waiting = [asyncio.create_task(passwords.verify("p", "$argon2id$")) for _ in range(5)]
    await eventually(lambda: gate.inside == 2)
    for _ in range(3):
        with pytest.raises(HashingBusy) as busy:
            await passwords.verify("p", "$argon2id$")
        assert busy.value.retry_after_s == 3
        with pytest.raises(HashingBusy):
            await passwords.hash("p")
    gate.open.set()
    assert await asyncio.gather(*waiting) == [(True, None)] * 5
    assert gate.most == 2
    assert await passwords.verify("p", "$argon2id$") == (True, None)


async def test_who_gives_up_waiting_frees_the_place(passwords: PwdlibPasswords, eventually: Any) -> None:
    gate = _Gate(passwords)
    running = [asyncio.create_task(passwords.verify("p", "$argon2id$")) for _ in range(2)]
    await eventually(lambda: gate.inside == 2)
    for _ in range(3):
        queued = [asyncio.create_task(passwords.verify("p", "$argon2id$")) for _ in range(3)]
        await asyncio.sleep(0)
        for task in queued:
            task.cancel()
        await asyncio.gather(*queued, return_exceptions=True)
    gate.open.set()
    assert await asyncio.gather(*running) == [(True, None)] * 2
    assert gate.most == 2
