"""Stored files that rot: where they lie, how they are harmed, and what becomes of their check."""

import asyncio
import time
from pathlib import Path
from typing import Any

from tests.contract.images import importing
from tests.contract.images.harness import Service


async def due(service: Service, *digests: str) -> None:
    """Make these blobs the ones verified longest ago, in that order."""
    for number, digest in enumerate(digests):
        await service.change("UPDATE blobs SET verified_at = '2020-01-01'::date + %s WHERE sha256 = %s", number, digest)


def file_of(service: Service, digest: str) -> Path:
    ((key,),) = service.rows("SELECT key FROM blobs WHERE sha256 = %s", digest)
    path: Path = service.settings.blob_folder / key
    return path


def flip(path: Path) -> None:
    """Let one bit rot."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def shown(service: Service, user: str, image: dict[str, Any]) -> dict[str, Any]:
    """The image as it is now."""
    return await importing.shown(service, user, image["id"])


async def ended(service: Service, user: str, operation_id: str, **options: Any) -> dict[str, Any]:
    """The operation once it has come to its end, as that user sees it."""
    url, until = f"/api/v1/operations/{operation_id}", time.monotonic() + 20
    while True:
        found: dict[str, Any] = (await service.http.get(url, headers=service.as_user(user, **options))).json()
        if found["state"] in importing.FINAL:
            return found
        assert time.monotonic() < until, found
        await asyncio.sleep(0.05)
