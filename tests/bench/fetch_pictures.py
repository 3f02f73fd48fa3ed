"""BENCH row of the fetcher: 5,000 pictures of 48 kB from a local nginx, beside img2dataset and aria2c."""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageFilter
from pymongo import MongoClient

from tests.bench.gateway_relay import Processes
from tests.integration.fetcher.mongo_servers import nx_27017

HERE = Path(__file__).parent
PICTURES = 5_000
PICTURE_BYTES = 48_000
IMG2DATASET = "1.47.0"
_MOTIFS = 40


class Deployment(Processes):
    """nginx with the pictures, and the fetcher before a MongoDB-wire server that has one document for each."""

    def __init__(self, folder: Path, mongo_uri: str) -> None:
        super().__init__(folder)
        self.folder = folder
        folder.chmod(0o755)  # nginx's worker is another user
        make_pictures(folder / "pictures")
        self.base = f"http://127.0.0.1:{self.nginx('pictures')}"
        self.urls = [f"{self.base}/{number}.jpg" for number in range(PICTURES)]
        self.mongo_uri = mongo_uri
        self.fetcher = self._fetcher()

    def _fetcher(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "fetch_pictures_apps.py"), self.mongo_uri, str(self.folder / "data")]
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "fetcher.log").open("w"),
            text=True,
        )
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError((self.folder / "fetcher.log").read_text()[-2000:])
        return process

    def fetch(self, check: str) -> float:
        """Seconds of one job over all pictures, none of which the store has; every one of them must have come."""
        collection = f"c{time.time_ns()}"
        contents = self.folder / "data" / "fetcher" / ".content"
        if contents.exists():  # equal pictures would only be linked
            contents.rename(self.folder / f"contents-{collection}")
        client: MongoClient[dict[str, Any]] = MongoClient(self.mongo_uri)
        with client:
            client["bench"][collection].insert_many(
                [{"_id": number, "image": url} for number, url in enumerate(self.urls)]
            )
        if self.fetcher.stdin is None or self.fetcher.stdout is None:
            raise RuntimeError("the fetcher has no pipes")
        order = {"database": "bench", "collection": collection, "check": check}
        self.fetcher.stdin.write(json.dumps(order) + "\n")
        self.fetcher.stdin.flush()
        result = json.loads(self.fetcher.stdout.readline())
        if result["items"]["completed"] != PICTURES or result["bytes"] != PICTURES * PICTURE_BYTES:
            raise RuntimeError(str(result))
        folder = self.folder / "data" / "fetcher" / "bench" / collection
        if sum(1 for _ in folder.glob("*/metadata.json")) != PICTURES:
            raise RuntimeError("metadata is missing")
        return float(result["seconds"])

    def stop(self) -> None:
        if self.fetcher.stdin is not None:
            self.fetcher.stdin.close()
        self.fetcher.wait(15)
        super().stop()


def make_pictures(folder: Path) -> None:
    """Photograph-like JPEGs of 640x480, each of exactly 48 kB, no two alike."""
    folder.mkdir()
    motifs = [_motif(seed) for seed in range(_MOTIFS)]
    for number in range(PICTURES):
        motif = motifs[number % _MOTIFS]
        comment = f"picture {number}".encode().ljust(PICTURE_BYTES - len(motif) - 4)
        segment = b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment
        (folder / f"{number}.jpg").write_bytes(motif[:2] + segment + motif[2:])


def _motif(seed: int) -> bytes:
    draw = random.Random(seed)  # noqa: S311 - noise, not a secret
    size = (640, 480)
    noise = Image.frombytes("RGB", size, draw.randbytes(size[0] * size[1] * 3)).filter(ImageFilter.GaussianBlur(1.2))
    shapes = Image.frombytes("RGB", (8, 6), draw.randbytes(144)).resize(size, Image.Resampling.BICUBIC)
    picture = Image.blend(noise, shapes, 0.5)
    best = b""
    for quality in range(60, 96):
        target = io.BytesIO()
        picture.save(target, "JPEG", quality=quality)
        if target.tell() > PICTURE_BYTES - 40:
            break
        best = target.getvalue()
    return best


# Nobody's files are removed before the end: on a disk that discards at once, that would slow the next in line.


def aria2(deployment: Deployment) -> float:
    """Seconds that aria2c needs to download all pictures, without any check."""
    urls, target = deployment.folder / "urls.txt", deployment.folder / f"aria2-{time.time_ns()}"
    urls.write_text("\n".join(deployment.urls))
    command = [shutil.which("aria2c") or "aria2c", "-q", "-j16", "--file-allocation=none", "-d", str(target)]
    seconds = _timed([*command, "-i", str(urls)])
    if len(list(target.iterdir())) != PICTURES:
        raise RuntimeError("aria2c lost pictures")
    return seconds


def img2dataset(deployment: Deployment, program: Path) -> float:
    """Seconds that img2dataset needs to download, decode, resize and describe all pictures, as its default is."""
    urls, target = deployment.folder / "urls.csv", deployment.folder / f"img2dataset-{time.time_ns()}"
    urls.write_text("\n".join(["url", *deployment.urls]))
    command = [str(program), "--url_list", str(urls), "--input_format", "csv", "--url_col", "url"]
    command += ["--output_folder", str(target), "--processes_count", "2", "--thread_count", "32"]
    command += ["--number_sample_per_shard", "500", "--compute_hash", "sha256"]
    seconds = _timed(command)
    if sum(1 for _ in target.rglob("*.jpg")) != PICTURES:
        raise RuntimeError("img2dataset lost pictures")
    return seconds


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"})
    return time.perf_counter() - began


def cpu_s() -> float:
    """Processor time of all that this process has started, nginx and the job store among them."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total: float = ended.ru_utime + ended.ru_stime
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


@contextlib.contextmanager
def img2dataset_program() -> Iterator[Path | None]:
    """img2dataset in a virtual environment that goes when the block ends; None where it cannot be installed."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False)
        python = Path(folder) / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", f"img2dataset=={IMG2DATASET}"]
        installed = subprocess.run(pip, check=False, capture_output=True)
        yield Path(folder) / "bin" / "img2dataset" if installed.returncode == 0 else None


def run(*, rounds: int = 3) -> dict[str, Any]:
    """The row: medians, and ratios of neighbours in time. Peers that are missing are named instead of measured.

    Processor time tells more than the clock where others use the machine.
    """
    rows: dict[str, Any] = {"pictures": PICTURES, "load_before": os.getloadavg()}
    if shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") is None:
        return rows | {"missing": ["nginx"]}
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(img2dataset_program())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        deployment = Deployment(folder, stack.enter_context(nx_27017(folder / "mongo")))
        stack.callback(deployment.stop)
        runs: dict[str, Callable[[], float]] = {
            "telar_decoded": lambda: deployment.fetch("full"),
            "telar_header": lambda: deployment.fetch("header"),
        }
        if program is not None:
            runs["img2dataset"] = lambda: img2dataset(deployment, program)
        if shutil.which("aria2c") is not None:
            runs["aria2c"] = lambda: aria2(deployment)
        deployment.fetch("full")
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        cpu_ms: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, measure in runs.items():
                before = cpu_s()
                seconds[name].append(measure())
                cpu_ms[name].append((cpu_s() - before) * 1000 / PICTURES)
    rows["missing"] = [name for name in ("img2dataset", "aria2c") if name not in runs]
    rows |= {f"{name}_s": round(statistics.median(values), 2) for name, values in seconds.items()}
    rows["all_s"] = {name: [round(value, 2) for value in values] for name, values in seconds.items()}
    rows["cpu_ms_per_picture"] = {name: round(statistics.median(values), 2) for name, values in cpu_ms.items()}
    rows["telar_pictures_per_s"] = round(PICTURES / statistics.median(seconds["telar_decoded"]))
    for peer, ours, key in (
        ("img2dataset", "telar_decoded", "times_img2dataset"),
        ("aria2c", "telar_header", "times_aria2c"),
    ):
        if peer in seconds:
            ratios = [theirs / mine for theirs, mine in zip(seconds[peer], seconds[ours], strict=True)]
            rows[key] = round(statistics.median(ratios), 2)
            rows[f"{key}_cpu"] = round(statistics.median(cpu_ms[peer]) / statistics.median(cpu_ms[ours]), 2)
    rows["load_after"] = os.getloadavg()
    return rows


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
