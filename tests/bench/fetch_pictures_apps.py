"""The fetcher as a process of its own for the benchmark: one job per line that it reads, one result per line back."""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import uvloop
from pydantic import SecretStr

from libs.common.bus.local import LocalBus
from libs.common.events import Event
from libs.common.logging import setup_logging
from libs.common.settings import CommonSettings
from libs.common.testing.identity import TestIssuer
from services.fetcher.main import create_app
from services.fetcher.settings import FetcherSettings

OWNER = "018f0000-0000-7000-8000-000000000001"


async def run_job(
    http: httpx.AsyncClient, headers: dict[str, str], ended: asyncio.Queue[str], order: dict[str, Any]
) -> dict[str, Any]:
    """One job from its request to the event of its end, in seconds."""
    began = time.perf_counter()
    answer = await http.post(
        f"/api/v1/download/collection/{order['database']}/{order['collection']}",
        json={"search_field": "image", "options": {"check": order["check"]}},
        headers=headers,
    )
    answer.raise_for_status()
    job_id = answer.json()["job_id"]
    while await ended.get() != job_id:
        pass
    took_s = time.perf_counter() - began
    job = (await http.get(f"/api/v1/jobs/{job_id}", headers=headers)).json()
    (await http.delete(f"/api/v1/jobs/{job_id}", headers=headers)).raise_for_status()
    return {"seconds": took_s, "status": job["status"], "items": job["items"], "bytes": job["bytes"]}


async def main(mongo_uri: str, folder: str) -> None:
    common = CommonSettings(
        data_dir=Path(folder),
        service_secret=SecretStr("for-the-benchmark-only-0123456789"),
        outbound_allow_networks=(ip_network("127.0.0.0/8"),),
        log_level="error",
    )
    setup_logging(common)
    settings = FetcherSettings(common=common, mongo_uri=mongo_uri, max_per_domain=20)
    issuer, bus = TestIssuer(), LocalBus()
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def listen(event: Event) -> None:
        if event.type.startswith(("fetcher.job.completed.", "fetcher.job.failed.")):
            await ended.put(event.subject)

    async def dead(letter: object) -> None:
        raise RuntimeError(str(letter))

    await bus.start()
    await bus.subscribe("bench", ("fetcher.#",), listen, dead)
    app = create_app(settings, bus=bus, verifier=issuer.verifier())
    async with app.router.lifespan_context(app):
        data = {"username": "bench", "external_id": None, "disabled": False, "quota": {"fetch_jobs": -1}}
        now = datetime.now(UTC)
        await bus.publish(
            Event(type="auth.user.created.v1", subject=OWNER, source="/telar/auth", time=now, data=data, sequence=1)
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fetcher", timeout=60) as http:
            print("ready", flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                print(json.dumps(await run_job(http, issuer.headers(OWNER), ended, json.loads(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2]))
