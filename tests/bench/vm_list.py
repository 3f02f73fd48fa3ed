"""BENCH row of lists: pages of 50 of 100,000 machines in the service.

Run it on a quiet machine: `python -m tests.bench.vm_list [machines]`; what is measured and how: `tests.bench.lists`.
"""

from pathlib import Path
from typing import Any

from libs.common.settings import CommonSettings
from libs.common.testing.serving import serving
from services.vms.main import create_app, migrate
from services.vms.models import SORTABLE
from services.vms.settings import VmsSettings
from tests.bench.lists import Listing, main, run_beside_postgres

FILTERS = {
    "no filter": {},
    "frequent state": {"state": "running"},
    "rare state": {"state": "error"},
    "missing state": {"state": "deleting"},
    "node": {"node": "sv7"},
    "missing node": {"node": "sv99"},
    "frequent name": {"name": "web"},
    "rare name": {"name": "b-777"},
    "missing name": {"name": "zzz"},
}
LISTING = Listing(
    "/api/v1/vms",
    "vms",
    SORTABLE,
    FILTERS,
    places="SELECT created_at, id FROM vms TABLESAMPLE BERNOULLI (5) LIMIT 300",
    beside="SELECT * FROM vms WHERE (created_at, id) < ('{at}', '{key}')",
)


async def measure(database_url: str, _folder: Path, count: int) -> dict[str, Any]:
    common = CommonSettings(embedded=True, auth_url="http://127.0.0.1:9")
    settings = VmsSettings(common=common, database_url=database_url, clusters=())
    async with serving("vms", create_app, migrate, settings, timeout_s=60) as service:
        LISTING.fill(database_url, Path(__file__).with_suffix(".sql"), count)
        return await LISTING.measure(service)


def run(*, count: int = 100_000) -> dict[str, Any]:
    """Milliseconds by what was asked; the target is `allowed_ms` for `p95_ms`, at any depth."""
    return run_beside_postgres("vms", measure, count)


if __name__ == "__main__":
    main(run)
