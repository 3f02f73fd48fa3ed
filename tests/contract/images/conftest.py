from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.images.converting import SLOW, program
from tests.contract.images.harness import Service, running
from tests.contract.images.web import Web, serving_web


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    folder: Path = tmp_path_factory.mktemp("images")
    async with running(database_url, folder, max_file_size=8 << 20) as service:
        yield service


@pytest.fixture(scope="module")
async def web() -> AsyncIterator[Web]:
    async with serving_web() as web:
        yield web


@pytest.fixture
async def slow(new_database_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    """A service whose qemu-img writes 4 MiB a second."""
    async with running(new_database_url, tmp_path, qemu_img=program(tmp_path, SLOW)) as service:
        yield service
