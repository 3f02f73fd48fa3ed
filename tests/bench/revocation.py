"""Row of revocation: how long a credential is still taken after it was withdrawn (logged out, or a key deleted).

`python -m tests.bench.revocation [tries]`. The suite is one of its own; what is measured is the time from the answer of
the withdrawal to the first refusal, at the gateway and at a service asked directly.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.conftest import log_in, start_suite

ALLOWED_S = 1.0


def refused_after(ask: Callable[[], httpx.Response]) -> float:
    """Seconds until an answer is 401."""
    began = time.perf_counter()
    while ask().status_code != httpx.codes.UNAUTHORIZED:
        assert time.perf_counter() - began < 30, "still taken after 30 s"
        time.sleep(0.001)
    return time.perf_counter() - began


def measure(url: str, service_url: str, username: str, password: str, tries: int) -> dict[str, list[float]]:
    """Seconds of each try, by what was withdrawn and who was asked."""
    taken: dict[str, list[float]] = {}
    with httpx.Client(trust_env=False, timeout=30) as http:
        for number in range(tries):
            for where, asked in (("gateway", url), ("service", service_url)):
                bearer = {"authorization": f"Bearer {log_in(url, username, password)['access_token']}"}
                path = f"{asked}/api/v1/users/me"
                assert http.get(path, headers=bearer).status_code == httpx.codes.OK
                http.post(f"{url}/api/v1/logout", headers=bearer).raise_for_status()
                seconds = refused_after(partial(http.get, path, headers=bearer))
                taken.setdefault(f"logout, {where}", []).append(seconds)
            bearer = {"authorization": f"Bearer {log_in(url, username, password)['access_token']}"}
            made = http.post(f"{url}/api/v1/api-keys", json={"name": f"key {number}"}, headers=bearer).json()
            key = {"x-api-key": made["key"]}
            assert http.get(f"{url}/protected", headers=key).status_code == httpx.codes.OK
            http.delete(f"{url}/api/v1/api-keys/{made['id']}", headers=bearer).raise_for_status()
            seconds = refused_after(partial(http.get, f"{url}/protected", headers=key))
            taken.setdefault("key, gateway", []).append(seconds)
    return taken


def run(*, tries: int = 50) -> dict[str, Any]:
    """Median and worst in milliseconds, by kind."""
    with tempfile.TemporaryDirectory(prefix="telar-bench-") as folder:
        suite = start_suite(Path(folder) / "data")
        try:
            taken = measure(suite.url, suite.services["auth"], suite.username, suite.password, tries)
        finally:
            suite.stop()
    for kind, seconds in taken.items():
        print(f"{kind:16} p50 {statistics.median(seconds) * 1000:6.1f} ms  worst {max(seconds) * 1000:6.1f} ms")
    return {
        **{f"{kind} p50_ms": round(statistics.median(seconds) * 1000, 1) for kind, seconds in taken.items()},
        "worst_ms": round(max(max(seconds) for seconds in taken.values()) * 1000, 1),
        "allowed_ms": ALLOWED_S * 1000,
    }


if __name__ == "__main__":
    run(tries=int(sys.argv[1]) if len(sys.argv) > 1 else 50)
