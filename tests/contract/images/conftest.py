from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.images.harness import Service, running


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    folder: Path = tmp_path_factory.mktemp("images")
    async with running(database_url, folder, max_file_size=8 << 20) as service:
        yield service
