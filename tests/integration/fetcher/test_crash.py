"""A worker killed in the middle of a job: nothing is lost, nothing finished is fetched twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.fetcher.domain.jobs import JobState
from services.fetcher.repository import MongoItems, MongoJobs, MongoStore
from services.fetcher.settings import FetcherSettings
from tests.integration.fetcher.conftest import Eventually, RunFetcher
from tests.integration.fetcher.pictures import PictureServer
from tests.integration.fetcher.records import event, item, job

URLS = 1_000

_WORKER = """
import asyncio, sys
from libs.common.bus import create_bus
from libs.common.testing.identity import TestIssuer
from services.fetcher.main import create_app
from services.fetcher.settings import FetcherSettings

async def main():
    settings = FetcherSettings.model_validate_json(sys.argv[1])
    bus = create_bus(settings.common.bus_url, source="fetcher")
    await bus.start()
    app = create_app(settings, bus=bus, verifier=TestIssuer().verifier())
    async with app.router.lifespan_context(app):
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def settings_json(settings: FetcherSettings) -> str:
    """Settings for another process, secrets written out."""
    document = json.loads(settings.model_dump_json())
    document["common"]["service_secret"] = settings.common.service_secret.get_secret_value()
    return json.dumps(document)


async def test_a_killed_worker_loses_no_item_and_repeats_no_finished_one(
    run_fetcher: RunFetcher,
    settings: FetcherSettings,
    source: Any,
    pictures: PictureServer,
    eventually: Eventually,
) -> None:
    await source["shop"].insert_many(
        [{"_id": number, "image": f"{pictures.url}/ok/{number}.jpg"} for number in range(URLS)]
    )
    async with run_fetcher(settings) as fetcher:
        await fetcher.call("GET", "/jobs")
        answer = await fetcher.call("POST", f"/download/collection/{source.name}/shop", json={"limit": 1})
        await fetcher.ended(answer.json()["job_id"])  # the account and the path of a job are known to work
        pictures.hits.clear()
        answer = await fetcher.call("POST", f"/download/collection/{source.name}/shop")
        job_id = answer.json()["job_id"]
        await fetcher.call("POST", f"/jobs/{job_id}/pause")

    jobs = source.client[settings.mongo_database]["jobs"]
    items = source.client[settings.mongo_database]["items"]
    await jobs.update_one({"_id": job_id}, {"$set": {"state": "running"}})
    worker = subprocess.Popen(  # noqa: ASYNC220 - a process to be killed, made right here
        [sys.executable, "-c", _WORKER, settings_json(settings)],
        cwd=Path(__file__).parents[3],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )

    async def halfway() -> bool:
        assert worker.poll() is None
        return bool(await items.count_documents({"job_id": job_id, "state": "completed"}) > URLS // 3)

    await eventually(halfway, 60)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    finished = await items.find({"job_id": job_id, "state": "completed"}).to_list(None)
    assert len(finished) < URLS

    async with run_fetcher(settings) as fetcher:
        job = await fetcher.ended(job_id, deadline_s=60)
        assert (job["status"], job["documents"], job["total_items"]) == ("completed", URLS, URLS)
        assert job["items"] == {"pending": 0, "downloading": 0, "completed": URLS, "failed": 0, "cancelled": 0}
        for item in finished:
            assert pictures.hits[item["url"].removeprefix(pictures.url)] == 1
        assert len(pictures.hits) == URLS
        assert sum(pictures.hits.values()) <= URLS + settings.max_concurrent_downloads * 4
        paths = {item["path"] for item in await fetcher.items(job_id)}
        assert len(paths) == URLS
        assert all((settings.storage_root / path).is_file() for path in paths)
        leftovers = list(settings.storage_root.rglob("*.part"))
        assert len(leftovers) <= settings.max_concurrent_downloads


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
async def test_what_a_killed_worker_held_of_an_ended_job_is_not_left_open(
    run_fetcher: RunFetcher, settings: FetcherSettings, state: JobState, eventually: Eventually
) -> None:
    with contextlib.closing(MongoStore(settings.mongo_uri, settings.mongo_database)) as store:
        items = MongoItems(store)
        await items.add([item(1)])
        await items.claim("job-001", limit=1, holder="killed", now_ms=1, until_ms=100, without=())
        await MongoJobs(store).add(job(state=state, finished_at_ms=1), event("job-001"))
    async with run_fetcher(settings.model_copy(update={"lease_s": 1.0})) as fetcher:

        async def closed() -> bool:
            items = (await fetcher.job("job-001"))["items"]
            return bool(items["downloading"] == items["pending"] == 0)

        await eventually(closed)
        assert (await fetcher.job("job-001"))["items"]["cancelled"] == 1
