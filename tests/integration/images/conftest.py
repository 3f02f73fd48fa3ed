from collections.abc import AsyncIterator

import pytest

from libs.common.db import Database
from libs.common.uow import UnitOfWorkFactory


@pytest.fixture(scope="module")
async def uow(database_url: str) -> AsyncIterator[UnitOfWorkFactory]:
    database = Database(database_url, pool_size=4)
    yield UnitOfWorkFactory(database, source="/telar/images")
    await database.close()
