"""Replicas that start together on an empty database make one administrator, one account and one key."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from libs.common.db import Database
from libs.common.uow import UnitOfWorkFactory
from services.auth.errors import BadApiKey
from services.auth.main import migrate
from services.auth.service import ApiKeys, Sessions, Users
from services.auth.settings import AuthSettings
from tests.contract.auth.harness import settings

REPLICAS = 6


class TogetherPasswords:
    """The port without the work; nobody's hash is done before everybody has begun one."""

    def __init__(self) -> None:
        self._all_here = asyncio.Barrier(REPLICAS)

    async def hash(self, password: str) -> str:
        await self._all_here.wait()
        return f"plain:{password}"

    async def verify(self, password: str, stored: str | None) -> tuple[bool, str | None]:
        return stored == f"plain:{password}", None


@pytest.fixture
async def database(new_database_url: str) -> AsyncIterator[Database]:
    database = Database(new_database_url, pool_size=REPLICAS)
    yield database
    await database.close()


@pytest.fixture
async def chosen(new_database_url: str, tmp_path: Path) -> AuthSettings:
    made = settings(new_database_url, tmp_path)
    await migrate(made)
    return made.model_copy(update={"admin_password": None})


async def test_replicas_that_start_together_make_everything_once(database: Database, chosen: AuthSettings) -> None:
    uow, passwords = UnitOfWorkFactory(database, source="/telar/auth"), TogetherPasswords()
    replicas = [Users(uow, passwords, chosen) for _ in range(REPLICAS)]
    made_up = await asyncio.gather(*(users.ensure_administrator() for users in replicas))
    assert len([password for password in made_up if isinstance(password, SecretStr)]) == 1
    accounts = await asyncio.gather(*(users.ensure_service_account() for users in replicas))
    assert len({account.id for account in accounts}) == 1
    keys = [ApiKeys(uow) for _ in range(REPLICAS)]
    await asyncio.gather(*(one.seed(accounts[0].id, "a-key-of-an-older-client") for one in keys))
    async with database.engine.connect() as connection:
        for table, count in (("users", 2), ("api_keys", 1), ("audit_entries", 3)):
            rows = await connection.execute(text(f"SELECT count(*) FROM {table}"))  # noqa: S608 - the names above
            assert rows.scalar_one() == count, table


async def test_another_key_in_the_settings_ends_the_one_before(database: Database, chosen: AuthSettings) -> None:
    uow, passwords = UnitOfWorkFactory(database, source="/telar/auth"), TogetherPasswords()
    account = await Users(uow, passwords, chosen).ensure_service_account()
    keys, sessions = ApiKeys(uow), Sessions(uow, passwords, chosen)
    await keys.seed(account.id, "the key that leaked")
    leaked = await sessions.exchange_key("the key that leaked", address="-")
    await keys.seed(account.id, "the key that follows")
    with pytest.raises(BadApiKey):
        await sessions.exchange_key("the key that leaked", address="-")
    assert (await sessions.exchange_key("the key that follows", address="-")).user.id == account.id
    assert [one.subject_id for one in await sessions.revocations()] == [leaked.session_id]
