"""BENCH row of lists: pages of 50 of 100,000 stacks in the service.

Run it on a quiet machine: `python -m tests.bench.stack_list [stacks]`; what is measured and how: `tests.bench.lists`.
There is no engine: how long one takes to tell of its containers is the engine's.
"""

from pathlib import Path
from typing import Any

from services.containers.models import SORTABLE
from tests.bench.lists import Listing, main, run_beside_postgres
from tests.contract.containers.harness import running

FILTERS = {
    "no filter": {},
    "frequent state": {"state": "running"},
    "rare state": {"state": "failed"},
    "missing state": {"state": "deleting"},
}
LISTING = Listing(
    "/api/v1/stacks",
    "stacks",
    SORTABLE,
    FILTERS,
    places="SELECT created_at, id FROM stacks TABLESAMPLE BERNOULLI (5) LIMIT 300",
    beside="SELECT * FROM stacks WHERE (created_at, id) < ('{at}', '{key}')",
)


async def measure(database_url: str, folder: Path, count: int) -> dict[str, Any]:
    async with running(database_url, folder, docker_host=f"unix://{folder}/no-engine.sock") as service:
        LISTING.fill(database_url, Path(__file__).with_suffix(".sql"), count)
        return await LISTING.measure(service)


def run(*, count: int = 100_000) -> dict[str, Any]:
    """Milliseconds by what was asked; the target is `allowed_ms` for `p95_ms`, at any depth."""
    return run_beside_postgres("containers", measure, count)


if __name__ == "__main__":
    main(run)
