from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.auth.harness import Service, running


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    folder: Path = tmp_path_factory.mktemp("auth")
    async with running(database_url, folder) as service:
        yield service
