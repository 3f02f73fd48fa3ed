from collections.abc import AsyncIterator

import pytest

from libs.pvesim.app import RunningLab
from tests.contract.vms.harness import Service, lab_at, running


@pytest.fixture
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningLab]:
    async with lab_at(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
async def service(database_url: str, lab: RunningLab) -> AsyncIterator[Service]:
    async with running(database_url, lab) as service:
        yield service
        await service.change("DELETE FROM vms")
        await service.change("DELETE FROM vmid_leases")
