"""The service killed with SIGKILL twenty times while it deploys: each stack runs, or failed and is clean."""

import os
import random
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from services.containers.domain.stacks import project_name
from tests.contract.containers.harness import SITE, running
from tests.integration.containers.conftest import Remains
from tests.integration.containers.test_crash import kill_at

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
KILLS = 20
LATEST_S = 2.5
DEADLINE_S = 60


@pytest.mark.parametrize("seed", range(KILLS))
async def test_a_stack_whose_deployment_was_killed_runs_or_failed_and_is_clean(
    own_database: str, tmp_path: Path, remains: Remains, seed: int
) -> None:
    after_s = random.Random(seed).uniform(0.02, LATEST_S)  # noqa: S311 - a time to be killed at
    left = await kill_at(own_database, tmp_path, "stack.create", f"after-{after_s:.3f}")
    project = project_name(UUID(left["stack"]))
    async with running(own_database, tmp_path) as service:
        await service.ended(left["user"], left["operation"], DEADLINE_S)
        shown = await service.get(left["user"], left["stack"])
        print(f"killed after {after_s:.2f} s: {shown['state']} ({os.getpid()})")  # noqa: T201 - the proof's figures
        if shown["state"] == "running":
            async with httpx.AsyncClient(trust_env=False) as web:
                assert (await web.get(shown["url"])).text == SITE["index.html"]
            assert len(remains(project)) == 2
        else:
            assert shown["state"] == "failed", shown
            assert remains(project) == []
            assert service.folders() == []
            assert service.used(left["user"]) == {}
        await service.act(left["user"], left["stack"], "delete")
        assert service.folders() == []
    assert remains(project) == []
