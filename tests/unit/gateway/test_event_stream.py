"""Which events a caller's stream holds."""

import time
from datetime import UTC, datetime

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api import feeds_router
from gateway.feeds import Entry, Feed
from libs.common.auth import Principal, Revocations, Role
from libs.common.events import Event


class As:
    """Says who calls, as authentication does."""

    def __init__(self, app: ASGIApp, principal: Principal) -> None:
        self._app = app
        self._principal = principal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["identity"] = self._principal
        await self._app(scope, receive, send)


@pytest.mark.parametrize(
    ("scopes", "seen"),
    [
        ({"*"}, ["vms.vm.created.v1", "containers.stack.created.v1"]),
        ({"read"}, ["vms.vm.created.v1", "containers.stack.created.v1"]),
        ({"stacks:read", "images"}, ["containers.stack.created.v1"]),
        ({"account"}, []),
    ],
)
async def test_a_key_hears_of_what_it_may_read(scopes: set[str], seen: list[str]) -> None:
    events = Feed(10)
    for kind, owner in (("vms.vm", "ada"), ("containers.stack", "ada"), ("vms.vm", "bob")):
        event = Event(f"{kind}.created.v1", "7", "/test", datetime.now(UTC), {}, owner=owner)
        events.publish(Entry(event.id, event, "{}", event.type))
    soon = time.time() + 0.3  # the stream ends with the token
    caller = Principal("ada", "ada", Role.CLIENT, "key:1", frozenset(scopes), time.time(), soon)
    app = FastAPI()
    app.include_router(feeds_router(events, Feed(0), Revocations()))
    transport = httpx.ASGITransport(As(app, caller))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        answer = await http.get("/api/v1/events", headers={"last-event-id": "0"})
    assert [line.partition(": ")[2] for line in answer.text.split("\n") if line.startswith("event: ")] == seen
