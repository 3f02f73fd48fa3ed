"""BENCH row of lists: pages of 50 of a job's 100,000 items in the service, however deep, beside the driver's own find.

Run it on a quiet machine: `python -m tests.bench.item_list [items]`. The service runs in this process, its job store is
the wire-compatible server of embedded mode in another.
"""

import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr
from pymongo import MongoClient

from libs.common.bus.local import LocalBus
from libs.common.logging import setup_logging
from libs.common.settings import CommonSettings
from libs.common.testing.identity import TestIssuer
from services.fetcher.domain.jobs import ItemState
from services.fetcher.main import create_app
from services.fetcher.models import Item
from services.fetcher.settings import FetcherSettings
from tests.integration.fetcher.mongo_servers import nx_27017

PAGE = 50
ALLOWED_MS = 10.0
OWNER = "018f0000-0000-7000-8000-000000000001"
JOB = "018f0000-0000-7000-8000-0000000000aa"
DEPTHS = {"first page": 0.0, "middle": 0.5, "end": 0.99}
FILTERS = {
    "no filter": {},
    "frequent state": {"status": "completed"},
    "rare state": {"status": "failed"},
    "rare reason": {"error": "http-410"},
    "missing reason": {"error": "http-418"},
}
_TIMES = 100


def item(number: int) -> Item:
    """One of a job's items: of a hundred 98 are there, one is missing and one damaged, of ten thousand one is gone."""
    failed = number % 100 < 2
    reason = ("http-410" if number % 10_000 == 0 else "http-404", "picture-damaged")[number % 100] if failed else None
    return Item(
        id=f"{JOB}:{number:020x}:001",
        job_id=JOB,
        document_id=str(number),
        search_field="image",
        position=1,
        folder=f"shop/products/{number}-image",
        url=f"http://{number % 50}.example/{number}.jpg",
        domain=f"{number % 50}.example",
        state=ItemState.FAILED if failed else ItemState.COMPLETED,
        reason=reason,
        size_bytes=0 if failed else 48_000,
    )


async def fill(mongo_uri: str, database: str, count: int) -> None:
    """A job that has ended, and its items."""
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_uri)
    with client:
        job = {"_id": JOB, "owner_id": OWNER, "kind": "collection", "database": "shop", "collection": "products"}
        job |= {"created_at_ms": 1, "updated_at_ms": 1, "state": "completed", "version": 3, "planned": True}
        client[database]["jobs"].insert_one({**job, "outbox_waiting": 0})
        for first in range(0, count, 2_000):
            documents = [item(number).to_document() for number in range(first, min(count, first + 2_000))]
            client[database]["items"].insert_many(documents, ordered=False)


async def pages(app: FastAPI, headers: dict[str, str], count: int) -> dict[str, Any]:
    """Milliseconds of a page, by filter and depth."""
    rows: dict[str, Any] = {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fetcher", timeout=60) as http:
        for name, query in FILTERS.items():
            for depth, part in DEPTHS.items():
                cursor = {"cursor": f"{JOB}:{int(count * part):020x}:001"} if part else {}
                took_ms = []
                for _ in range(_TIMES + 1):
                    began = time.perf_counter()
                    answer = await http.get(
                        f"/api/v1/jobs/{JOB}/items", params={"limit": str(PAGE), **query, **cursor}, headers=headers
                    )
                    answer.raise_for_status()
                    took_ms.append((time.perf_counter() - began) * 1000)
                rows[f"{name}, {depth}"] = _figures(took_ms[1:])  # the first one also connects and compiles
    return rows


def peer(mongo_uri: str, database: str, count: int) -> dict[str, Any]:
    """The driver's own find by key, as fast as the job store gives it."""
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_uri)
    with client:
        took_ms = []
        for at in range(_TIMES):
            after = f"{JOB}:{int(count * at / _TIMES):020x}:001"
            began = time.perf_counter()
            list(
                client[database]["items"]
                .find({"job_id": {"$eq": JOB}, "key": {"$gt": after}})
                .sort("key", 1)
                .limit(PAGE)
            )
            took_ms.append((time.perf_counter() - began) * 1000)
    return _figures(took_ms)


def _figures(took_ms: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(statistics.median(took_ms), 2),
        "p95_ms": round(statistics.quantiles(took_ms, n=20)[-1], 2),
    }


@contextlib.contextmanager
def _store() -> Iterator[tuple[Path, str]]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, nx_27017(Path(folder) / "mongo") as uri:
        yield Path(folder), uri


async def measure(folder: Path, mongo_uri: str, count: int) -> dict[str, Any]:
    common = CommonSettings(
        data_dir=folder, service_secret=SecretStr("for-the-benchmark-only-0123456789"), log_level="error"
    )
    setup_logging(common)
    settings = FetcherSettings(common=common, mongo_uri=mongo_uri, mongo_database="jobs")
    issuer, bus = TestIssuer(), LocalBus()
    await bus.start()
    app = create_app(settings, bus=bus, verifier=issuer.verifier())
    async with app.router.lifespan_context(app):
        await fill(mongo_uri, "jobs", count)
        rows = await pages(app, issuer.headers(OWNER), count)
    await bus.close()
    rows["peer: find by key"] = await asyncio.to_thread(peer, mongo_uri, "jobs", count)
    return rows


def run(count: int = 100_000, *, store: Callable[[], Any] = _store) -> dict[str, Any]:
    """The row: p50 and p95 of each filter and depth, and the slowest of all."""
    with store() as (folder, uri):
        rows = asyncio.run(measure(folder, uri, count))
    slowest = max(row["p95_ms"] for name, row in rows.items() if not name.startswith("peer"))
    return {"items": count, "pages": rows, "slowest_p95_ms": slowest, "allowed_ms": ALLOWED_MS}


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000), indent=2))
