"""An engine that takes calls and answers none."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.containers.adapters.engine import DockerEngine


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[str]:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(tmp_path / "engine.sock"))
        listening.listen(100)
        yield f"unix://{tmp_path}/engine.sock"


async def test_an_engine_that_hangs_keeps_no_thread_from_anything_else(hanging: str) -> None:
    engine = DockerEngine(hanging, max_log_streams=1)
    calls = [asyncio.create_task(engine.ping()) for _ in range(32 + 2 * (os.cpu_count() or 1))]
    await asyncio.sleep(0)  # they are in their threads' queue now
    await asyncio.to_thread(os.getpid)
    assert not any(call.done() for call in calls)
    for call in calls:
        call.cancel()
    await engine.close()
