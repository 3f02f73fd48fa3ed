"""Guessing passwords: what it costs the guesser, and that it costs nobody else; on a clock that the tests move."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from libs.common.auth import Principal, Role
from libs.common.db import Database
from libs.common.errors import TelarError
from libs.common.outbox import outbox_table
from libs.common.uow import UnitOfWorkFactory
from services.auth.errors import BadCredentials, TooManyFailures
from services.auth.main import migrate
from services.auth.schemas import UserIn
from services.auth.service import Sessions, Users
from tests.contract.auth.harness import settings

RIGHT = "the right password"
GUESS = "a guess"
HOME, AWAY = "198.51.100.7", "203.0.113.9"
ADMIN_EMAIL = "admin@example.org"


class FixedClock:
    """A clock that stands still until it is moved."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def now(self) -> datetime:
        return self._at

    def advance(self, by: timedelta) -> None:
        self._at += by


@dataclass
class PlainPasswords:
    """The port without the work: counts what would have been computed."""

    verified: list[str | None] = field(default_factory=list)

    async def hash(self, password: str) -> str:
        return f"plain:{password}"

    async def verify(self, password: str, stored: str | None) -> tuple[bool, str | None]:
        self.verified.append(stored)
        return stored == f"plain:{password}", None


@dataclass
class Lab:
    users: Users
    sessions: Sessions
    passwords: PlainPasswords
    clock: FixedClock
    database: Database

    async def attempt(self, username: str, password: str = GUESS, *, address: str = AWAY) -> TelarError | None:
        try:
            await self.sessions.login(username, password, address=address, user_agent="")
        except TelarError as error:
            return error
        return None

    async def fail(self, times: int, username: str, *, address: str = AWAY) -> None:
        for _ in range(times):
            assert isinstance(await self.attempt(username, address=address), BadCredentials)

    async def events(self) -> list[str]:
        async with self.database.engine.connect() as connection:
            rows = await connection.execute(outbox_table.select().order_by(outbox_table.c.id))
            return [row.type for row in rows]


@pytest.fixture
async def lab(database_url: str, tmp_path: Path) -> AsyncIterator[Lab]:
    chosen = settings(
        database_url,
        tmp_path,
        open_registration=True,
        account_failures=5,
        network_failures=30,
        lock_s=60,
        failure_window_s=900,
    )
    await migrate(chosen)
    database = Database(database_url)
    async with database.engine.begin() as connection:
        for table in ("users", "login_failures", "outbox", "audit_entries"):
            await connection.exec_driver_sql(f"TRUNCATE {table} CASCADE")
    clock = FixedClock(datetime(2027, 1, 1, tzinfo=UTC))
    uow = UnitOfWorkFactory(database, source="/telar/auth", clock=clock)
    passwords = PlainPasswords()
    users = Users(uow, passwords, chosen)
    for name in ("ada", "bob"):
        body = UserIn(email=f"{name}@example.org", username=name, password=SecretStr(RIGHT))
        await users.create(body, None, HOME)
    yield Lab(users, Sessions(uow, passwords, chosen), passwords, clock, database)
    await database.close()


async def test_five_wrong_passwords_make_the_next_try_wait_even_with_the_right_one(lab: Lab) -> None:
    await lab.fail(5, "ada")
    refused = await lab.attempt("ada", RIGHT)
    assert isinstance(refused, TooManyFailures)
    assert refused.retry_after_s == pytest.approx(60)


async def test_while_it_waits_no_hash_is_computed(lab: Lab) -> None:
    await lab.fail(5, "ada")
    computed = len(lab.passwords.verified)
    for _ in range(10):
        assert isinstance(await lab.attempt("ada", RIGHT), TooManyFailures)
    assert len(lab.passwords.verified) == computed


async def test_who_holds_a_token_guesses_the_current_password_no_faster(lab: Lab) -> None:
    grant = await lab.sessions.login("ada", RIGHT, address=AWAY, user_agent="")
    holder = Principal(str(grant.user.id), "ada", Role.CLIENT, grant.session_id, frozenset(grant.scopes), 0, 0)

    async def guess(password: str) -> None:
        await lab.users.change_password(holder, SecretStr(password), SecretStr("the thief's own"), AWAY)

    for _ in range(5):
        with pytest.raises(BadCredentials):
            await guess(GUESS)
    computed = len(lab.passwords.verified)
    with pytest.raises(TooManyFailures):
        await guess(RIGHT)
    assert len(lab.passwords.verified) == computed
    assert isinstance(await lab.attempt("ada", RIGHT), TooManyFailures)
    assert await lab.attempt("ada", RIGHT, address=HOME) is None


async def test_the_wait_ends_by_itself(lab: Lab) -> None:
    await lab.fail(5, "ada")
    lab.clock.advance(timedelta(seconds=59))
    assert isinstance(await lab.attempt("ada", RIGHT), TooManyFailures)
    lab.clock.advance(timedelta(seconds=2))
    assert await lab.attempt("ada", RIGHT) is None


async def test_the_wait_doubles_with_each_further_failure_up_to_the_window(lab: Lab) -> None:
    await lab.fail(5, "ada")
    waits = []
    for _ in range(4):
        refused = await lab.attempt("ada")
        assert isinstance(refused, TooManyFailures)
        assert refused.retry_after_s is not None
        waits.append(round(refused.retry_after_s))
        lab.clock.advance(timedelta(seconds=refused.retry_after_s + 0.1))
        error = await lab.attempt("ada")
        assert isinstance(error, BadCredentials)
    assert waits == [60, 120, 240, 480]


async def test_an_attacker_elsewhere_never_locks_the_owner_out(lab: Lab) -> None:
    for third in range(20):
        await lab.fail(5, "ada", address=f"203.0.{third}.1")
    assert await lab.attempt("ada", RIGHT, address=HOME) is None
    assert await lab.attempt("ada@example.org", RIGHT, address=HOME) is None


async def test_the_addresses_of_one_network_count_together(lab: Lab) -> None:
    for last in range(5):
        await lab.fail(1, "ada", address=f"203.0.113.{last}")
    assert isinstance(await lab.attempt("ada", RIGHT, address="203.0.113.200"), TooManyFailures)
    for last in range(5):
        await lab.fail(1, "bob", address=f"2001:db8:0:1::{last}")
    assert isinstance(await lab.attempt("bob", RIGHT, address="2001:db8:0:1:ffff::9"), TooManyFailures)
    assert await lab.attempt("bob", RIGHT, address="2001:db8:0:2::1") is None


async def test_a_dual_stack_socket_does_not_put_all_of_ipv4_into_one_network(lab: Lab) -> None:
    await lab.fail(5, "ada", address="::ffff:203.0.113.9")
    assert isinstance(await lab.attempt("ada", RIGHT, address="203.0.113.10"), TooManyFailures)
    assert await lab.attempt("ada", RIGHT, address="::ffff:198.51.100.7") is None


async def test_spraying_many_names_from_one_network_is_slowed_down(lab: Lab) -> None:
    for number in range(30):
        await lab.fail(1, f"name-{number}", address=f"203.0.113.{number}")
    assert isinstance(await lab.attempt("ada", RIGHT), TooManyFailures)
    assert isinstance(await lab.attempt("yet-another"), TooManyFailures)
    assert await lab.attempt("ada", RIGHT, address=HOME) is None
    lab.clock.advance(timedelta(seconds=61))
    assert await lab.attempt("ada", RIGHT) is None


async def test_a_right_password_forgets_the_names_failures_but_not_the_networks(lab: Lab) -> None:
    for number in range(7):
        await lab.fail(4, "ada" if number % 2 else "bob")
        assert await lab.attempt("ada" if number % 2 else "bob", RIGHT) is None
    await lab.fail(2, "ada")
    assert isinstance(await lab.attempt("ada", RIGHT), TooManyFailures)


async def test_failures_are_forgotten_after_the_window(lab: Lab) -> None:
    await lab.fail(4, "ada")
    lab.clock.advance(timedelta(seconds=901))
    await lab.fail(4, "ada")
    assert await lab.attempt("ada", RIGHT) is None


async def test_a_name_that_does_not_exist_is_throttled_just_the_same(lab: Lab) -> None:
    await lab.fail(5, "nobody")
    missing, existing = await lab.attempt("nobody"), None
    await lab.fail(5, "ada")
    existing = await lab.attempt("ada")
    assert isinstance(missing, TooManyFailures)
    assert isinstance(existing, TooManyFailures)
    assert (missing.detail, missing.slug) == (existing.detail, existing.slug)


async def test_the_case_of_a_name_or_blanks_around_it_open_no_second_account(lab: Lab) -> None:
    for name in ("ada", "ADA", " ada", "Ada ", "aDa"):
        await lab.fail(1, name)
    assert isinstance(await lab.attempt("ada", RIGHT), TooManyFailures)


async def test_a_hash_is_computed_whether_or_not_the_name_exists(lab: Lab) -> None:
    for name in ("ada", "nobody", "ada@example.org", "nobody@example.org"):
        before = len(lab.passwords.verified)
        await lab.fail(1, name)
        assert len(lab.passwords.verified) == before + 1
    assert [stored is None for stored in lab.passwords.verified[-4:]] == [False, True, False, True]


async def test_guesses_at_once_are_all_counted(lab: Lab) -> None:
    await asyncio.gather(*(lab.attempt("ada", address=f"203.0.113.{n}") for n in range(20)))
    refused = await lab.attempt("ada", RIGHT)
    assert isinstance(refused, TooManyFailures)
    assert refused.retry_after_s is not None
    assert refused.retry_after_s > 60


async def test_locking_and_unlocking_are_told_once_each(lab: Lab) -> None:
    await lab.fail(5, "ada")
    for _ in range(3):
        await lab.attempt("ada")
    lab.clock.advance(timedelta(seconds=61))
    assert await lab.attempt("ada", RIGHT) is None
    told = [one for one in await lab.events() if one.startswith("auth.login.")]
    assert told == ["auth.login.locked.v1", "auth.login.unlocked.v1"]


async def test_the_sweep_forgets_old_failures_and_keeps_locks(lab: Lab) -> None:
    await lab.fail(5, "ada")
    await lab.sessions.sweep()
    assert isinstance(await lab.attempt("ada", RIGHT), TooManyFailures)
    lab.clock.advance(timedelta(seconds=890))
    await lab.fail(2, "ada", address="203.0.114.1")
    await lab.fail(1, "ada")
    lab.clock.advance(timedelta(seconds=30))  # the window has ended, the lock has not
    await lab.sessions.sweep()
    assert isinstance(await lab.attempt("ada", RIGHT), TooManyFailures)
    lab.clock.advance(timedelta(seconds=1000))
    await lab.sessions.sweep()
    async with lab.database.engine.connect() as connection:
        left = (await connection.exec_driver_sql("SELECT count(*) FROM login_failures")).scalar_one()
    assert left == 0
