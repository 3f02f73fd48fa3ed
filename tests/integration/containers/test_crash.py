"""The service killed with SIGKILL at every step of a stack's life, and what the next process makes of it."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest

from services.containers.domain.stacks import project_name
from tests.contract.containers.harness import SITE, running
from tests.integration.containers.conftest import Remains

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[3]
CREATE_POINTS = (
    "store",
    "up-during",
    *(pytest.param(one, marks=pytest.mark.long) for one in ("fetch", "render", "up", "healthy")),
)
DELETE_POINTS = ("down", *(pytest.param(one, marks=pytest.mark.long) for one in ("down-during", "remove")))


async def kill_at(url: str, folder: Path, kind: str, point: str) -> dict[str, Any]:
    """Let a process run into its death; gives what it left behind."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("stacks_worker.py")),
        url,
        str(folder),
        kind,
        point,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await asyncio.wait_for(worker.communicate(), 60)
    assert worker.returncode == -signal.SIGKILL, told.decode()
    line = next(line for line in told.decode().splitlines() if line.startswith("LEFT "))
    left: dict[str, Any] = json.loads(line.removeprefix("LEFT "))
    with psycopg.connect(url) as connection:  # what time does by itself
        connection.execute("UPDATE operations SET lease_until = now() - interval '1 second'")
    return left


@pytest.mark.parametrize("point", CREATE_POINTS)
async def test_a_deployment_killed_at_a_step_is_carried_to_its_end(
    own_database: str, tmp_path: Path, remains: Remains, point: str
) -> None:
    left = await kill_at(own_database, tmp_path, "stack.create", point)
    project = project_name(UUID(left["stack"]))
    async with running(own_database, tmp_path) as service:
        operation = await service.ended(left["user"], left["operation"], 60)
        assert operation["state"] == "succeeded", operation
        shown = await service.get(left["user"], left["stack"])
        assert (shown["state"], shown["health"]) == ("running", "healthy")
        async with httpx.AsyncClient(trust_env=False) as web:
            assert (await web.get(shown["url"])).text == SITE["index.html"]
        assert len(remains(project)) == 2  # one container and its network, not one more
        await service.act(left["user"], left["stack"], "delete")
        assert service.folders() == []
    assert remains(project) == []


@pytest.mark.parametrize("point", DELETE_POINTS)
async def test_a_deletion_killed_at_a_step_is_carried_to_its_end(
    own_database: str, tmp_path: Path, remains: Remains, point: str
) -> None:
    left = await kill_at(own_database, tmp_path, "stack.delete", point)
    async with running(own_database, tmp_path) as service:
        operation = await service.ended(left["user"], left["operation"], 60)
        assert operation["state"] == "succeeded", operation
        assert service.folders() == []
        assert service.used_stacks(left["user"]) == 0
    assert remains(project_name(UUID(left["stack"]))) == []
