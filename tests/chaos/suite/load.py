"""Clients that go on asking while something breaks, and remember every answer."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import httpx

from tests.chaos.suite.cluster import Cluster

READS = ("/api/v1/users/me", "/api/v1/images", "/api/v1/vms", "/api/v1/stacks", "/api/v1/jobs", "/api/v1/stats")
PAUSE_S = 0.02
USERS = 5
NO_ANSWER = 0


class Load:
    """Writers that make events, readers of every service, and one that makes and deletes machines."""

    def __init__(self, cluster: Cluster) -> None:
        self.answers: Counter[int] = Counter()
        self.failures: list[tuple[float, str, int, str]] = []
        """Every 5xx: when (monotonic seconds), the call, its status, the answer."""
        self.machines = 0
        self._http = cluster.client()
        self._users: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._numbers = itertools.count(1)
        self._stopping = False

    async def __aenter__(self) -> Self:
        for number in range(USERS):
            name = f"load-{time.monotonic_ns()}-{number}"
            body = {"username": name, "email": f"{name}@example.org", "password": "correct horse battery"}
            answer = await self._http.post("/api/v1/users/", json=body)
            assert answer.status_code == 201, answer.text
            self._users.append(answer.json()["id"])
        works = [self._write, self._write, self._read, self._read, self._make_machines]
        self._tasks = [asyncio.create_task(self._again_and_again(work)) for work in works]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
        await self._http.aclose()

    async def stop(self) -> None:
        """Let the calls under way end and ask nothing more."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _again_and_again(self, work: Callable[[], Awaitable[None]]) -> None:
        while not self._stopping:
            await work()
            await asyncio.sleep(PAUSE_S)

    async def _write(self) -> None:
        number = next(self._numbers)
        user = self._users[number % USERS]
        await self._ask("PATCH", f"/api/v1/users/{user}", json={"quota": {"vms": number}})

    async def _read(self) -> None:
        await self._ask("GET", READS[next(self._numbers) % len(READS)])

    async def _make_machines(self) -> None:
        wish = {"name": f"m{next(self._numbers)}", "os_type": "debian", "cores": 1, "memory_mib": 512}
        made = await self._ask("POST", "/api/v1/vms", json=wish)
        if made is None or made.status_code != 202:
            return
        await self._ended(made)
        deleted = await self._ask("DELETE", f"/api/v1/vms/{made.json()['vm']['id']}")
        if deleted is not None and deleted.status_code == 202 and await self._ended(deleted):
            self.machines += 1

    async def _ended(self, accepted: httpx.Response) -> bool:
        """Whether the operation succeeded."""
        while not self._stopping:
            shown = await self._ask("GET", accepted.headers["location"])
            if shown is not None and shown.status_code == 200 and shown.json()["state"] not in ("pending", "running"):
                return bool(shown.json()["state"] == "succeeded")
            await asyncio.sleep(0.2)
        return False

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.TransportError as error:
            self._note(method, path, NO_ANSWER, type(error).__name__)
            return None
        self._note(method, path, answer.status_code, answer.text)
        return answer

    def _note(self, method: str, path: str, status: int, text: str) -> None:
        self.answers[status] += 1
        if status == NO_ANSWER or status >= 500:
            self.failures.append((time.monotonic(), f"{method} {path}", status, text[:200]))
