"""A process that deploys (and deletes) a stack and kills itself with SIGKILL after a step's work, before it is stored.

Called as `stacks_worker.py DATABASE_URL FOLDER KIND POINT`, where the point is a step, a step with `-during`, or
`after-SECONDS` from the acceptance on; prints the user, the stack and the operation it left behind.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from libs.common.operations import Saga, Step, StepContext
from services.containers.operations import sagas
from tests.contract.containers.harness import SITE, Service, running

DURING_S = 0.15


def crashing(whole: Sequence[Saga], kind: str, point: str) -> list[Saga]:
    """The same sagas, but that the named step is the last thing this process does."""
    name, _, when = point.partition("-")

    def doomed(step: Step) -> Step:
        async def run(context: StepContext) -> None:
            if when == "during":
                asyncio.get_running_loop().call_later(DURING_S, os.kill, os.getpid(), signal.SIGKILL)
            await step.run(context)
            os.kill(os.getpid(), signal.SIGKILL)

        return replace(step, run=run) if step.name == name else step

    return [replace(saga, steps=[doomed(step) for step in saga.steps]) if saga.kind == kind else saga for saga in whole]


def tell(user: str, stack_id: str, operation_id: str) -> None:
    line = {"user": user, "stack": stack_id, "operation": operation_id}
    print("LEFT", json.dumps(line), flush=True)  # noqa: T201 - its answer to the test


async def work(service: Service, kind: str, point: str) -> None:
    user = await service.new_user()
    answer = await service.create(user, files=SITE)
    stack_id = answer.json()["stack"]["id"]
    if kind == "stack.create":
        tell(user, stack_id, answer.json()["id"])
        if point.startswith("after-"):
            await asyncio.sleep(float(point.removeprefix("after-")))
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        await service.done(user, answer)
        removal = await service.http.delete(f"/api/v1/stacks/{stack_id}", headers=service.as_user(user))
        tell(user, stack_id, removal.json()["id"])
    await asyncio.Event().wait()


async def main() -> None:
    url, folder, kind, point = sys.argv[1:]

    def doomed(*arguments: Any) -> list[Saga]:
        return crashing(sagas(*arguments), kind, point)

    with patch("services.containers.main.sagas", doomed):
        async with running(url, Path(folder)) as service:
            await work(service, kind, point)


if __name__ == "__main__":
    asyncio.run(main())
