from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.aggregate import Services
from libs.common import dead_letters_api, problems
from libs.common.auth import Principal, Role
from libs.common.errors import Invalid
from libs.common.ids import uuid7
from libs.common.telemetry import Metrics

PATH = "/api/v1/dead-letters"
ADMIN = Principal("ada", "ada", Role.ADMIN, "session", frozenset({"*"}), issued_at=0, expires_at=1e12)


class AsAdministrator:
    """Says who calls, as authentication does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["identity"] = ADMIN
        await self._app(scope, receive, send)


class Letters:
    """A service's dead letters in memory."""

    def __init__(self) -> None:
        self.ids: list[UUID] = []

    async def dead_letters(self, *, before: UUID | None, limit: int) -> Sequence[Mapping[Any, Any]]:
        older = [one for one in sorted(self.ids, reverse=True) if before is None or one < before]
        facts = {"body": b"x", "reason": "no", "deliveries": 1, "failed_at": datetime(2026, 11, 21, tzinfo=UTC)}
        return [{"id": one, **facts} for one in older[:limit]]

    async def replay(self, letter_id: UUID) -> None: ...
    async def discard(self, letter_id: UUID) -> None: ...


def app_of(name: str, letters: Letters) -> FastAPI:
    app = FastAPI()
    app.add_middleware(AsAdministrator)
    problems.install(app, Metrics(name))
    app.include_router(dead_letters_api.router(name, letters))
    return app


@pytest.fixture
def letters() -> dict[str, Letters]:
    return {name: Letters() for name in ("vms", "images", "auth")}


@pytest.fixture
async def services(letters: dict[str, Letters]) -> AsyncIterator[Services]:
    mounts = {f"http://{name}": httpx.ASGITransport(app_of(name, kept)) for name, kept in letters.items()}
    async with httpx.AsyncClient(mounts=mounts) as http:
        yield Services({name: (f"http://{name}",) for name in letters}, http)


async def walked(services: Services, limit: int) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        items, cursor = await services.list_merged(PATH, {}, "token", limit=limit, cursor=cursor)
        assert len(items) <= limit
        found += [item["id"] for item in items]
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
async def test_pages_of_all_services_hold_each_item_once_and_the_newest_first(
    services: Services, letters: dict[str, Letters], limit: int
) -> None:
    for place in (0, 0, 1, 0, 2, 1, 1, 0, 0):
        list(letters.values())[place].ids.append(uuid7())
    made = sorted(str(one) for kept in letters.values() for one in kept.ids)
    assert await walked(services, limit) == made[::-1]


@pytest.mark.parametrize("cursor", ["x", "bnVsbA", "eyJ2bXMiOiAieCJ9"])
async def test_a_cursor_of_another_list_is_refused(services: Services, cursor: str) -> None:
    with pytest.raises(Invalid):
        await services.list_merged(PATH, {}, "token", limit=2, cursor=cursor)
