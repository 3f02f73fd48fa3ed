"""BENCH row of user enumeration: how long a refused login takes for a name that exists and for one that does not.

Run it on a quiet machine: `python -m tests.bench.login_enumeration [tries]`. It starts a suite of its own, sends wrong
passwords for an existing and a missing name in turns, over one connection, and prints the medians and their ratio.
"""

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.conftest import start_suite

NAMES = {"existing name": "admin", "existing e-mail": "admin@telar.local", "missing name": "nobody-of-that-name"}
ALLOWED = 0.05


def measure(url: str, tries: int) -> dict[str, list[float]]:
    """Seconds of each refused login, by kind of name; the kinds are shuffled so that drift hits all alike."""
    order = [kind for kind in NAMES for _ in range(tries)]
    random.Random(1).shuffle(order)  # noqa: S311 - a repeatable order
    taken: dict[str, list[float]] = {kind: [] for kind in NAMES}
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        for kind in [*NAMES, *order]:
            started = time.perf_counter()
            answer = http.post("/api/v1/login", json={"username": NAMES[kind], "password": "not it at all"})
            taken[kind].append(time.perf_counter() - started)
            assert answer.status_code == 401, answer.text
    return {kind: seconds[1:] for kind, seconds in taken.items()}


def run(*, tries: int = 100) -> dict[str, Any]:
    """Medians in milliseconds by kind of name, and the worst difference to the missing name's."""
    with tempfile.TemporaryDirectory(prefix="telar-bench-") as folder:
        unlimited = {"TELAR_AUTH_ACCOUNT_FAILURES": "1000000", "TELAR_AUTH_NETWORK_FAILURES": "1000000"}
        suite = start_suite(Path(folder) / "data", **unlimited)
        try:
            taken = measure(suite.url, tries)
        finally:
            suite.stop()
    medians = {kind: statistics.median(seconds) for kind, seconds in taken.items()}
    missing = medians["missing name"]
    for kind, median in medians.items():
        deciles = statistics.quantiles(taken[kind], n=10)
        spread = f"p10 {deciles[0] * 1000:.1f} p90 {deciles[-1] * 1000:.1f}"
        print(f"{kind:16} p50 {median * 1000:7.2f} ms  {spread}  {median / missing - 1:+.2%}")
    worst = max(abs(median / missing - 1) for median in medians.values())
    print(f"worst difference of medians {worst:.2%}, allowed {ALLOWED:.0%}")
    return {
        **{f"{kind} p50_ms": round(median * 1000, 2) for kind, median in medians.items()},
        "worst_difference": round(worst, 4),
        "allowed": ALLOWED,
    }


if __name__ == "__main__":
    run(tries=int(sys.argv[1]) if len(sys.argv) > 1 else 200)
