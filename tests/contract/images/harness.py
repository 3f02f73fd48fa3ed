"""The images service on a real database, and what its tests do with it."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from libs.common.settings import CommonSettings
from libs.common.testing.serving import Served, serving, user_event
from services.images.main import create_app, migrate
from services.images.settings import ImagesSettings
from tests.corpora.images import disks

_users = itertools.count(1)
UNLIMITED = -1


def settings(database_url: str, folder: Path, **options: Any) -> ImagesSettings:
    common = CommonSettings(embedded=True, data_dir=folder, auth_url="http://127.0.0.1:9")
    return ImagesSettings(common=common, database_url=database_url, **options)


@dataclass
class Service(Served):
    """A running images service, and what its tests do with it."""

    async def new_user(self, *, image_bytes: int = UNLIMITED) -> str:
        """A user whom the service has heard of; gives the id."""
        user_id = f"user-{next(_users)}"
        await self.bus.publish(user_event(user_id, image_bytes=image_bytes))
        return user_id

    async def upload(
        self,
        user_id: str,
        content: bytes | None = None,
        *,
        filename: str = "disk.qcow2",
        headers: dict[str, str] | None = None,
        **fields: str,
    ) -> httpx.Response:
        return await self.http.post(
            "/api/v1/images/upload",
            headers={**self.as_user(user_id), **(headers or {})},
            data={"name": "Debian 13", "os_type": "Debian", **fields},
            files={"file": (filename, disks.qcow2() if content is None else content)},
        )

    async def image(self, user_id: str, content: bytes | None = None, **options: Any) -> dict[str, Any]:
        """Upload an image that is accepted."""
        answer = await self.upload(user_id, content, **options)
        assert answer.status_code == 201, answer.text
        shown: dict[str, Any] = answer.json()["image"]
        return shown

    def files(self) -> list[Path]:
        """Every file that the service keeps, staged or published."""
        return [path for path in self.settings.blob_folder.rglob("*") if path.is_file()]

    def used_bytes(self, user_id: str) -> int:
        return self.used(user_id).get("image_bytes", 0)


@contextlib.asynccontextmanager
async def running(database_url: str, folder: Path, **options: Any) -> AsyncIterator[Service]:
    """Migrate and run the service in this process."""
    async with serving("images", create_app, migrate, settings(database_url, folder, **options)) as served:
        yield Service(**vars(served))
