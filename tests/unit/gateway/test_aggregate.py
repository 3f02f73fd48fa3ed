import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.aggregate import Services
from gateway.api import aggregate_router
from gateway.errors import DeadLetterNotFound
from libs.common import dead_letters_api, problems
from libs.common.auth import Principal, Role
from libs.common.errors import Kind, TelarError, Unavailable
from libs.common.ids import uuid7
from libs.common.telemetry import Metrics

PATH = "/api/v1/dead-letters"
ADMIN = Principal("ada", "ada", Role.ADMIN, "session", frozenset({"*"}), issued_at=0, expires_at=1e12)


class AsAdministrator:
    """Says who calls, as authentication does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {}).update(identity=ADMIN, access_token="token")
        await self._app(scope, receive, send)


class Letters:
    """A service's dead letters in memory."""

    def __init__(self, *ids: UUID) -> None:
        self.ids = list(ids)

    async def dead_letters(self, *, before: UUID | None, limit: int) -> Sequence[Mapping[Any, Any]]:
        older = [one for one in sorted(self.ids, reverse=True) if before is None or one < before]
        facts = {"body": b"x", "reason": "no", "deliveries": 1, "failed_at": datetime(2026, 11, 21, tzinfo=UTC)}
        return [{"id": one, **facts} for one in older[:limit]]

    async def replay(self, letter_id: UUID) -> None: ...

    async def discard(self, letter_id: UUID) -> None:
        self.ids.remove(letter_id)


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
        page = await services.list_merged(PATH, {}, "token", limit=limit, cursor=cursor)
        assert len(page.items) <= limit
        assert page.unavailable == []
        found += [item["id"] for item in page.items]
        cursor = page.next_cursor
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
    with pytest.raises(TelarError) as refusal:
        await services.list_merged(PATH, {}, "token", limit=2, cursor=cursor)
    assert refusal.value.kind is Kind.INVALID


class Away(httpx.AsyncBaseTransport):
    """A service that cannot be reached."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route", request=request)


class Hangs(httpx.AsyncBaseTransport):
    """A service that never answers; nobody waits for it for long."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert request.extensions["timeout"]["read"] <= 5
        raise httpx.ReadTimeout("it hangs", request=request)


class Answers(httpx.AsyncBaseTransport):
    """A service that answers everything with the same problem."""

    def __init__(self, status: int, slug: str, detail: str = "so it is") -> None:
        self._status = status
        self._problem = {"type": f"/problems/{slug}", "title": slug, "status": status, "detail": detail}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = {"retry-after": "5"} if self._status == 503 else {}
        return httpx.Response(self._status, json=self._problem, headers=headers, request=request)


@contextlib.asynccontextmanager
async def behind(**transports: httpx.AsyncBaseTransport) -> AsyncIterator[Services]:
    mounts = {f"http://{name}": transport for name, transport in transports.items()}
    async with httpx.AsyncClient(mounts=mounts, timeout=30) as http:
        yield Services({name: (f"http://{name}",) for name in transports}, http)


MISSING = Answers(404, "dead-letter-not-found")


async def test_a_dead_letter_that_the_bus_does_not_take_is_told_as_its_service_does() -> None:
    async with behind(auth=MISSING, vms=Answers(503, "unavailable", "The bus did not take it"), images=MISSING) as all_:
        with pytest.raises(TelarError) as refusal:
            await all_.on_dead_letter("POST", "1", "/replay", "token")
    assert (refusal.value.kind, refusal.value.retry_after_s) == (Kind.UNAVAILABLE, 5)
    assert refusal.value.detail == "The bus did not take it"


async def test_a_dead_letter_is_found_beside_services_that_are_away_or_ill() -> None:
    kept = Letters(uuid7())
    good = httpx.ASGITransport(app_of("vms", kept))
    async with behind(auth=Away(), images=Answers(503, "database-unavailable"), vms=good) as all_:
        await all_.on_dead_letter("DELETE", str(kept.ids[0]), "", "token")
    assert kept.ids == []


async def test_a_dead_letter_is_not_said_to_be_nowhere_while_a_service_is_away() -> None:
    async with behind(auth=MISSING, vms=Away()) as all_:
        with pytest.raises(Unavailable, match="vms"):
            await all_.on_dead_letter("DELETE", "1", "", "token")
    async with behind(auth=MISSING, vms=MISSING) as all_:
        with pytest.raises(DeadLetterNotFound):
            await all_.on_dead_letter("DELETE", "1", "", "token")


async def test_a_list_goes_on_with_a_service_that_was_away_for_a_page(letters: dict[str, Letters]) -> None:
    for kept in letters.values():
        kept.ids += [uuid7(), uuid7()]
    apps = {name: httpx.ASGITransport(app_of(name, kept)) for name, kept in letters.items()}
    async with behind(**apps | {"vms": Away()}) as all_:
        first = await all_.list_merged(PATH, {}, "token", limit=2, cursor=None)
    async with behind(**apps) as all_:
        rest = await all_.list_merged(PATH, {}, "token", limit=50, cursor=first.next_cursor)
    assert (first.unavailable, rest.unavailable) == (["vms"], [])
    assert sorted(item["id"] for item in first.items + rest.items) == sorted(
        str(one) for k in letters.values() for one in k.ids
    )


async def test_a_list_holds_nothing_of_services_that_hang_or_that_the_callers_key_may_not_read() -> None:
    good, kept = Letters(), uuid7()
    good.ids.append(kept)
    well = httpx.ASGITransport(app_of("vms", good))
    async with behind(auth=Answers(403, "forbidden"), images=Hangs(), vms=well) as all_:
        page = await all_.list_merged(PATH, {}, "token", limit=2, cursor=None)
    assert [item["id"] for item in page.items] == [str(kept)]
    assert page.unavailable == ["images"]


async def test_a_list_is_refused_as_its_service_does() -> None:
    async with behind(vms=Answers(401, "unauthenticated")) as all_:
        with pytest.raises(TelarError) as refusal:
            await all_.list_merged(PATH, {}, "token", limit=2, cursor=None)
    assert refusal.value.kind is Kind.UNAUTHENTICATED


async def test_an_older_clients_user_is_unavailable_while_auth_is_away() -> None:
    async with behind(auth=Away()) as all_:
        with pytest.raises(Unavailable):
            await all_.older_user("ext-7", "token")


async def test_a_page_of_all_services_links_to_the_next_one(letters: dict[str, Letters], services: Services) -> None:
    for kept in letters.values():
        kept.ids += [uuid7(), uuid7()]
    app, found, where = FastAPI(), [], f"{PATH}?limit=4"
    app.add_middleware(AsAdministrator)
    app.include_router(aggregate_router(services))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as gateway:
        while where:
            answer = await gateway.get(where)
            found += [item["id"] for item in answer.json()["items"]]
            where = answer.links.get("next", {}).get("url", "")
    assert sorted(found) == sorted(str(one) for kept in letters.values() for one in kept.ids)
    own = httpx.ASGITransport(app_of("vms", letters["vms"]))
    async with httpx.AsyncClient(transport=own, base_url="http://vms") as vms:
        assert "next" in (await vms.get(PATH, params={"limit": 1})).links


async def test_operations_of_all_services_are_narrowed_to_a_resource() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params.get("resource", ""))
        return httpx.Response(200, json={"items": [], "next_cursor": None})

    app = FastAPI()
    app.add_middleware(AsAdministrator)
    async with behind(vms=httpx.MockTransport(answer)) as all_:
        app.include_router(aggregate_router(all_))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as gateway:
            await gateway.get("/api/v1/operations", params={"resource": "vm/7"})
    assert asked == ["vm/7"]
