"""BENCH row of the embedded start: cold to ready, and resident memory of all its processes."""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

TARGET_S = 6.0
TARGET_MB = 700


def run(*, rounds: int = 3) -> dict[str, Any]:
    """Start on an empty folder (everything is made) and again on the same one; medians."""
    first, again, resident = [], [], []
    for _ in range(rounds):
        folder = Path(tempfile.mkdtemp(prefix="telar-bench-"))
        try:
            first.append(_start(folder)[0])
            seconds, megabytes = _start(folder)
            again.append(seconds)
            resident.append(megabytes)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    row = {
        "empty_folder_s": round(statistics.median(first), 2),
        "kept_folder_s": round(statistics.median(again), 2),
        "resident_mb": round(statistics.median(resident)),
        "target_s": TARGET_S,
        "target_mb": TARGET_MB,
    }
    print(f"start on an empty folder {row['empty_folder_s']} s, on a kept one {row['kept_folder_s']} s ({TARGET_S} s)")
    print(f"resident in all {row['resident_mb']} MB ({TARGET_MB} MB)")
    return row


def _start(folder: Path) -> tuple[float, float]:
    """Seconds until the suite is ready, and what all its processes then hold in MB (shared pages once)."""
    log = folder / "start.log"
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "up"],
            env={**os.environ, "TELAR_DATA_DIR": str(folder / "data"), "TELAR_PORT": "0"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    while b"Ready." not in log.read_bytes():
        if process.poll() is not None:
            raise RuntimeError(log.read_text()[-2000:])
        time.sleep(0.01)
    seconds = time.monotonic() - started
    megabytes = _resident_mb(folder)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    return seconds, megabytes


def _resident_mb(folder: Path) -> float:
    """Proportional set size of every process that works in the folder, or is a child of one."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            mine = str(folder) in " ".join(process.cmdline()) or str(folder) in process.environ().get(
                "TELAR_DATA_DIR", ""
            )
            if mine:
                for one in (process, *process.children(recursive=True)):
                    found[one.pid] = one
        except psutil.Error:
            continue
    return sum(process.memory_full_info().pss for process in found.values() if process.is_running()) / 1e6
