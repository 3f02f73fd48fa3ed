"""The containers service on a real database, and what its tests do with it."""

import asyncio
import contextlib
import io
import itertools
import time
import zipfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from libs.common.settings import CommonSettings
from libs.common.testing.serving import Served, serving, user_event
from services.containers.main import create_app, migrate
from services.containers.settings import ContainersSettings

_users = itertools.count(1)
UNLIMITED = -1
SITE = {"index.html": "<h1>hello from the zip</h1>", "css/site.css": "h1 { color: teal }"}


def zip_of(files: Mapping[str, str | bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return written.getvalue()


def settings(database_url: str, folder: Path, **options: Any) -> ContainersSettings:
    common = CommonSettings(embedded=True, data_dir=folder, auth_url="http://127.0.0.1:9")
    given = {"common": common, "database_url": database_url, "stacks_dir": folder / "stacks", **options}
    return ContainersSettings(**given)


@dataclass
class Service(Served):
    """A running containers service, and what its tests do with it."""

    async def new_user(
        self,
        *,
        stacks: int = UNLIMITED,
        cores: int = UNLIMITED,
        memory_mib: int = UNLIMITED,
        external_id: str | None = None,
    ) -> str:
        """A user whom the service has heard of; gives the id."""
        user_id = f"user-{next(_users)}-{time.time_ns() % 10**6}"
        await self.bus.publish(
            user_event(user_id, external_id=external_id, stacks=stacks, cores=cores, memory_mib=memory_mib)
        )
        return user_id

    async def create(
        self,
        user_id: str,
        *,
        files: Mapping[str, str | bytes] | bytes | None = None,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> httpx.Response:
        asked = {"name": "site", "service_types": ["static"], "file_manager": False, **fields}
        sent: dict[str, Any] = {"headers": {**self.as_user(user_id), **(headers or {})}}
        if files is None:
            return await self.http.post("/api/v1/stacks", json=asked, **sent)
        content = files if isinstance(files, bytes) else zip_of(files)
        upload = {"zip_file": ("site.zip", content, "application/zip")}
        return await self.http.post("/api/v1/stacks", data=asked, files=upload, **sent)

    async def get(self, user_id: str, stack_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/api/v1/stacks/{stack_id}", headers=self.as_user(user_id))
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    async def ended(self, user_id: str, operation_id: str, deadline_s: float = 60) -> dict[str, Any]:
        """Wait until an operation has ended; gives it."""
        until = time.monotonic() + deadline_s
        while True:
            answer = await self.http.get(f"/api/v1/operations/{operation_id}", headers=self.as_user(user_id))
            operation: dict[str, Any] = answer.json()
            if operation["state"] not in ("pending", "running"):
                return operation
            assert time.monotonic() < until, operation
            await asyncio.sleep(0.1)

    async def done(self, user_id: str, answer: httpx.Response, deadline_s: float = 60) -> dict[str, Any]:
        """Follow accepted work to its success; gives the stack as the answer showed it."""
        assert answer.status_code == 202, answer.text
        operation = await self.ended(user_id, answer.json()["id"], deadline_s)
        assert operation["state"] == "succeeded", operation
        stack: dict[str, Any] = answer.json()["stack"]
        return stack

    async def act(self, user_id: str, stack_id: str, action: str) -> dict[str, Any]:
        path = f"/api/v1/stacks/{stack_id}"
        method, path = ("DELETE", path) if action == "delete" else ("POST", f"{path}/{action}")
        return await self.done(user_id, await self.http.request(method, path, headers=self.as_user(user_id)))

    def folders(self) -> list[str]:
        """Every stack's folder that there is."""
        return sorted(path.name for path in self.settings.stacks_dir.iterdir())

    def used_stacks(self, user_id: str) -> int:
        return self.used(user_id).get("stacks", 0)

    def events(self, stack_id: str) -> list[str]:
        """The events of a stack so far, such as `created`, `state_changed:running`."""
        found = sorted((one for one in self.heard if one.subject == stack_id), key=lambda one: one.sequence)
        words = [(one.type.split(".")[2], one.data["state"]) for one in found]
        return [f"{verb}:{state}" if verb == "state_changed" else verb for verb, state in words]


@contextlib.asynccontextmanager
async def running(database_url: str, folder: Path, **options: Any) -> AsyncIterator[Service]:
    """Migrate and run the service in this process."""
    async with serving("containers", create_app, migrate, settings(database_url, folder, **options)) as served:
        yield Service(**vars(served))
