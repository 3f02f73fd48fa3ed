"""The vms service in a process that kills itself at a write, and what its death leaves behind."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from tests.contract.vms.harness import Service

_ROOT = Path(__file__).parents[3]


async def killed(given: dict[str, Any]) -> bool:
    """Run the service in a process that kills itself, as `kill -9` would; False if its work was over before."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.vms.worker",
        json.dumps(given),
        cwd=_ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await asyncio.wait_for(process.communicate(), 180)
    assert process.returncode in (-signal.SIGKILL, 0), told.decode()[-2000:]
    return process.returncode == -signal.SIGKILL


async def free_leases(service: Service) -> None:
    """As if the dead process's leases had run out."""
    await service.change("UPDATE operations SET lease_until = now() - interval '1 second' WHERE state = 'running'")
