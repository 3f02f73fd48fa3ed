"""Twenty kills in a job of 100,000 pictures: none lost, no finished one fetched twice, counts exact.

`TELAR_CHAOS_URLS` and `TELAR_CHAOS_KILLS` make it shorter. An nginx serves the pictures, and its log is the witness.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from libs.common.testing.ports import free_port
from services.fetcher.settings import FetcherSettings
from tests.integration.fetcher.conftest import RunFetcher
from tests.integration.fetcher.pictures import picture
from tests.integration.fetcher.test_crash import _WORKER, settings_json

URLS = int(os.environ.get("TELAR_CHAOS_URLS", "100000"))
KILLS = int(os.environ.get("TELAR_CHAOS_KILLS", "20"))
_PICTURES = 100
_log = structlog.get_logger()
_CONFIGURATION = """
{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  log_format path "$uri $status";
  log_format asked "$request_uri $status";
  access_log {folder}/access.log asked;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  types {{ image/jpeg jpg; }}
  server {{
    listen 127.0.0.1:{port}; root {folder}/pictures; keepalive_requests 100000;
    rewrite "^/\\d*(\\d\\d)\\.jpg$" /$1.jpg break;
  }}
}}
"""


class Witness:
    """nginx with pictures, and what it was asked for."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "access.log"

    def position(self) -> int:
        """Where the log ends, once it has grown no more for a moment."""
        size = -1
        while size != (size := self._log.stat().st_size):
            time.sleep(0.3)
        return size

    def paths(self) -> set[bytes]:
        """All that was asked for so far; the job store is left in peace."""
        return set(self._log.read_bytes().split(b"\n"))

    def asked(self) -> list[tuple[int, str]]:
        """Each answered request's place in the log, and its path."""
        found = []
        place = 0
        for line in self._log.read_bytes().splitlines(keepends=True):
            match = re.fullmatch(rb"(\S+) 200\n", line)
            if match:
                found.append((place, match[1].decode()))
            place += len(line)
        return found


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.fail("nginx is missing: apt-get install nginx-light")
    folder = tmp_path / "nginx"
    (folder / "pictures").mkdir(parents=True)
    for number in range(_PICTURES):
        (folder / "pictures" / f"{number:02d}.jpg").write_bytes(picture(seed=number))
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""  # pytest closes its folders to others whenever it starts
    (folder / "nginx.conf").write_text(_CONFIGURATION.format(folder=folder, port=port, user=user))
    process = subprocess.Popen([nginx, "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (folder / "access.log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield Witness(folder, port)
    process.terminate()
    process.wait()


def start_worker(settings: FetcherSettings, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", _WORKER, settings_json(settings)],
            cwd=Path(__file__).parents[3],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )


@pytest.mark.timeout(7200)
async def test_no_picture_is_lost_and_no_finished_one_fetched_again_over_twenty_kills(
    run_fetcher: RunFetcher, settings: FetcherSettings, source: Any, witness: Witness, tmp_path: Path
) -> None:
    for first in range(0, URLS, 5_000):
        await source["shop"].insert_many(
            [{"_id": n, "image": f"{witness.url}/{n:08d}.jpg"} for n in range(first, min(URLS, first + 5_000))]
        )
    hard = settings.model_copy(update={"max_unwritten": 512, "max_per_domain": 20})
    items = source.client[settings.mongo_database]["items"]
    finished_before: list[tuple[int, set[str]]] = []
    seen: set[str] = set()
    began = time.monotonic()
    async with run_fetcher(hard) as fetcher:
        answer = await fetcher.call("POST", f"/download/collection/{source.name}/shop", json={"search_field": "image"})
        job_id = answer.json()["job_id"]

    for kill in range(1, KILLS + 1):
        worker = start_worker(hard, tmp_path / "worker.log")
        while len(witness.paths()) < kill * URLS // (KILLS + 2):
            assert worker.poll() is None, (tmp_path / "worker.log").read_text()[-3000:]
            await asyncio.sleep(0.5)
        worker.kill()
        worker.wait()
        place = witness.position()
        query = {"job_id": job_id, "state": "completed"}
        now = {item["url"].removeprefix(witness.url) for item in await items.find(query, {"url": 1}).to_list(None)}
        finished_before.append((place, now - seen))
        seen |= now
        _log.warning("killed", kill=kill, after_s=round(time.monotonic() - began), finished=len(seen))

    async with run_fetcher(hard) as fetcher:
        job = await fetcher.ended(job_id, deadline_s=3600)
        assert (job["status"], job["documents"], job["total_items"]) == ("completed", URLS, URLS)
        assert job["items"] == {"pending": 0, "downloading": 0, "completed": URLS, "failed": 0, "cancelled": 0}
        assert sum(row["items"]["completed"] for row in job["domains"]) == URLS
    took_s = time.monotonic() - began

    asked = witness.asked()
    counts = Counter(path for _, path in asked)
    assert len(counts) == URLS
    first_place = {path: place for place, finished in finished_before for path in finished}
    again = [path for place, path in asked if place >= first_place.get(path, sys.maxsize)]
    assert again == []
    repeated = len(asked) - URLS
    assert repeated <= KILLS * hard.max_unwritten
    stored = sum(1 for _ in (settings.storage_root / source.name).rglob("img_*"))
    assert stored == URLS
    _log.warning("proved", pictures=URLS, kills=KILLS, took_s=round(took_s), unfinished_fetched_twice=repeated)
