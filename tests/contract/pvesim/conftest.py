"""A lab over real HTTPS, and proxmoxer as its client: each call in a thread, one client object per thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from proxmoxer import ProxmoxAPI
from proxmoxer.core import ResourceException

from libs.pvesim.app import RunningLab, serve
from libs.pvesim.settings import LabSettings

SCALE = 0.02
THREADS = ThreadPoolExecutor(32, thread_name_prefix="proxmoxer")
DEADLINE_S = 20.0


class Client:
    """proxmoxer with the lab's token (or a user's ticket), usable from the event loop."""

    def __init__(self, running: RunningLab, *, port: int | None = None, **credentials: Any) -> None:
        self.running = running
        self.port = port or running.port
        user, _, token = running.token_id.partition("!")
        self._credentials = credentials or {
            "user": user,
            "token_name": token,
            "token_value": running.token_secret.get_secret_value(),
        }
        self._local = threading.local()

    def api(self) -> ProxmoxAPI:
        if not hasattr(self._local, "api"):
            self._local.api = ProxmoxAPI(
                "127.0.0.1",
                port=self.port,
                verify_ssl=str(self.running.ca_path),
                timeout=60,
                **self._credentials,
            )
        return self._local.api

    async def __call__(self, method: str, path: str, /, **params: Any) -> Any:
        named = {key.replace("__", "-"): value for key, value in params.items()}
        return await asyncio.get_running_loop().run_in_executor(
            THREADS, lambda: getattr(self.api()(path), method)(**named)
        )

    async def cookie(self) -> dict[str, str]:
        """The header of a user's ticket."""
        ticket = await asyncio.get_running_loop().run_in_executor(THREADS, lambda: self.api().get_tokens()[0])
        return {"Cookie": f"PVEAuthCookie={ticket}"}

    async def fails(self, method: str, path: str, /, **params: Any) -> ResourceException:
        with pytest.raises(ResourceException) as caught:
            await self(method, path, **params)
        return caught.value

    async def task(self, upid: str) -> dict[str, Any]:
        """The final status of a task."""
        node = upid.split(":")[1]
        return await eventually(
            lambda: self("get", f"nodes/{node}/tasks/{upid}/status"), lambda status: status["status"] == "stopped"
        )

    async def done(self, method: str, path: str, /, **params: Any) -> str:
        """Run a call that answers with a UPID; returns the task's exit status."""
        return str((await self.task(await self(method, path, **params)))["exitstatus"])

    async def log(self, upid: str) -> list[str]:
        node = upid.split(":")[1]
        return [line["t"] for line in await self("get", f"nodes/{node}/tasks/{upid}/log", limit=0)]


async def eventually(
    ask: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool], deadline_s: float = DEADLINE_S
) -> Any:
    """Ask again until the answer holds."""
    end = asyncio.get_running_loop().time() + deadline_s
    while True:
        answer = await ask()
        if holds(answer):
            return answer
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"still {answer!r} after {deadline_s} s")
        await asyncio.sleep(0.05)


@asynccontextmanager
async def lab_at(folder: Path, **options: Any) -> AsyncIterator[RunningLab]:
    running = await serve(LabSettings(**{"data_dir": folder, "port": 0, "time_scale": SCALE, **options}))
    try:
        yield running
    finally:
        await running.aclose()


@pytest.fixture(scope="session")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningLab]:
    async with lab_at(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="session")
def token(lab: RunningLab) -> Client:
    return Client(lab)


@pytest.fixture(scope="session")
def root(lab: RunningLab) -> Client:
    return Client(lab, user="root@pam", password=lab.root_password.get_secret_value())


@pytest.fixture(scope="session")
def fresh_id() -> Callable[[], int]:
    """Ids that no other test uses; `nextid` is the subject of tests, not their tool."""
    counter = iter(range(20000, 30000))
    return lambda: next(counter)


@pytest.fixture
def new_vm(token: Client, fresh_id: Callable[[], int]) -> Callable[..., Awaitable[int]]:
    """A linked clone of the Debian template on its node."""

    async def make(**params: Any) -> int:
        vmid = fresh_id()
        assert await token.done("post", "nodes/sv2/qemu/9001/clone", newid=vmid, **params) == "OK"
        return vmid

    return make


@pytest.fixture
async def running_vm(token: Client, new_vm: Callable[..., Awaitable[int]]) -> str:
    """The path of a machine that runs."""
    vmid = await new_vm(name="console-test")
    assert await token.done("post", f"nodes/sv2/qemu/{vmid}/status/start") == "OK"
    return f"nodes/sv2/qemu/{vmid}"
