"""A process per crash point that runs operations until it kills itself (SIGKILL) at that point.

Called as `operations_worker.py URL kind@step@stage…`; prints one line per child: its kind and how it ended.
"""

import asyncio
import os
import signal
import sys

from libs.common.db import Database
from libs.common.errors import Conflict
from libs.common.operations import Saga, Step, StepContext
from tests.integration.common.operations_lab import STEPS, Cloud, Lab, cloud_step

AT_ONCE = 5


async def run_until_killed(url: str, kind: str, step: str, stage: str) -> None:
    def hook(_context: StepContext, at_step: str, at_stage: str) -> None:
        if (at_step, at_stage) == (step, stage):
            os.kill(os.getpid(), signal.SIGKILL)

    database = Database(url, pool_size=3)
    lab = Lab(database)
    await lab.notifications.start()
    await lab.runner(crashing_saga(Cloud(database), kind, hook), lease_s=60)
    await asyncio.sleep(60)


def crashing_saga(cloud: Cloud, kind: str, hook: object) -> Saga:
    """Five steps; kinds that begin with `undo` fail at the end, so that all is undone."""

    async def refuse(_context: StepContext) -> None:
        raise Conflict("The last step refuses")

    steps = [cloud_step(cloud, name, hook) for name in STEPS]  # type: ignore[arg-type] # a hook, named loosely
    if kind.startswith("undo"):
        steps.append(Step("refuse", refuse))
    return Saga(kind, steps)


def main() -> None:
    url, *points = sys.argv[1:]
    for batch in range(0, len(points), AT_ONCE):
        children = {fork(url, point): point.split("@")[0] for point in points[batch : batch + AT_ONCE]}
        for child, kind in children.items():
            _, status = os.waitpid(child, 0)
            print("ENDED", kind, -os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - its answer to the test


def fork(url: str, point: str) -> int:
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(run_until_killed(url, *point.split("@")))
        finally:
            os._exit(1)
    return child


if __name__ == "__main__":
    main()
