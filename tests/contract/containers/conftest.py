from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.containers.deploying import require_images
from tests.contract.containers.harness import Service, running


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """The service where no engine answers."""
    folder: Path = tmp_path_factory.mktemp("containers")
    absent = f"unix://{folder}/no-engine.sock"
    async with running(database_url, folder, docker_host=absent, max_zip_bytes=100_000) as service:
        yield service


@pytest.fixture(scope="module")
async def deploying(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """The service on a real engine that has the images of deploy/airgap."""
    require_images()
    folder: Path = tmp_path_factory.mktemp("stacks")
    async with running(database_url, folder, healthy_timeout_s=45, default_cpus=2) as service:
        yield service


@pytest.fixture
async def user(deploying: Service) -> str:
    return await deploying.new_user()
