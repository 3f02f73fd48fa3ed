"""What tests of imports and conversions do with the service: begin one, wait for its end, look what is left."""

import asyncio
import time
from typing import Any

import httpx

from tests.contract.images.harness import Service

FINAL = ("succeeded", "failed", "cancelled", "needs_operator")


async def begin(service: Service, user: str, url: str, **fields: Any) -> httpx.Response:
    """Ask for an import."""
    wish = {"url": url, "name": "Debian 13", "os_type": "Debian", **fields}
    return await service.http.post("/api/v1/images/import", headers=service.as_user(user), json=wish)


async def begun(service: Service, user: str, url: str, **fields: Any) -> dict[str, Any]:
    """An import that was accepted: its operation, with the image."""
    answer = await begin(service, user, url, **fields)
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def operation(service: Service, user: str, operation_id: str) -> dict[str, Any]:
    answer = await service.http.get(f"/api/v1/operations/{operation_id}", headers=service.as_user(user))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def ended(service: Service, user: str, operation_id: str, *, deadline_s: float = 30) -> dict[str, Any]:
    """The operation once it has come to its end."""
    until = time.monotonic() + deadline_s
    while True:
        found = await operation(service, user, operation_id)
        if found["state"] in FINAL:
            return found
        assert time.monotonic() < until, found
        await asyncio.sleep(0.05)


async def cancel(service: Service, user: str, operation_id: str) -> httpx.Response:
    return await service.http.delete(f"/api/v1/operations/{operation_id}", headers=service.as_user(user))


async def shown(service: Service, user: str, image_id: str) -> dict[str, Any]:
    answer = await service.http.get(f"/api/v1/images/{image_id}", headers=service.as_user(user))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def imported(service: Service, user: str, url: str, **fields: Any) -> dict[str, Any]:
    """The active image that an import ended as."""
    begun_one = await begun(service, user, url, **fields)
    end = await ended(service, user, begun_one["id"])
    assert end["state"] == "succeeded", end
    return await shown(service, user, begun_one["image"]["id"])


async def refused(service: Service, user: str, url: str, **fields: Any) -> dict[str, Any]:
    """The problem that an import failed with; nothing of it may be left but the rejected record, which says why."""
    begun_one = await begun(service, user, url, **fields)
    end = await ended(service, user, begun_one["id"])
    assert end["state"] == "failed", end
    image = await shown(service, user, begun_one["image"]["id"])
    assert (image["status"], image["reason"]) == ("rejected", end["error"]["detail"])
    assert nothing_is_left(service, user, image["id"])
    problem: dict[str, Any] = end["error"]
    return problem


def nothing_is_left(service: Service, user: str, image_id: str) -> bool:
    """Neither a reservation nor an upload nor a file of it."""
    uploads = service.rows("SELECT id FROM uploads WHERE id = %s", image_id)
    files = [path for path in service.files() if image_id in path.name]
    return service.used_bytes(user) == 0 and uploads == [] and files == []


def provenance(service: Service, image_id: str) -> dict[str, Any]:
    found: dict[str, Any] = service.rows("SELECT provenance FROM images WHERE id = %s", image_id)[0][0]
    return found
