"""The operations routes over a real database: shapes, owners, pages, streams."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.common import problems
from libs.common.auth import Principal, Role
from libs.common.errors import Conflict
from libs.common.operations import Operations, Saga, State, Step, StepContext
from libs.common.operations_api import accepted, operations_router
from libs.common.telemetry import Metrics
from tests.integration.common.operations_lab import Eventually, Lab

FIELDS = [
    "id",
    "kind",
    "resource",
    "owner_id",
    "state",
    "step",
    "progress",
    "message",
    "error",
    "attempts",
    "created_at",
    "updated_at",
    "steps",
]


def principal(user_id: str, role: Role = Role.CLIENT, scope: str = "*") -> Principal:
    return Principal(user_id, user_id, role, "s", frozenset({scope}), 0, time.time() + 60)


CALLERS = {
    "ada": principal("ada"),
    "ada's key": principal("ada", scope="images"),
    "ada's reading key": principal("ada", scope="vms:read"),
    "bob": principal("bob"),
    "root": principal("root", Role.ADMIN),
    "vms": principal("service:vms", Role.SERVICE),
}


class ByHeader:
    """Puts the principal that the test names where the authentication middleware would put it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            who = dict(scope["headers"]).get(b"x-caller", b"").decode()
            scope.setdefault("state", {})["identity"] = CALLERS.get(who)
        await self._app(scope, receive, send)


class Gate:
    """Two steps; the second waits for `go` and says how far it is."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.fail = False
        steps = [Step("first", self.first), Step("second", self.second)]
        self.saga = Saga("gate", steps, cancellable=True)
        self.fixed = Saga("fixed", steps)

    async def first(self, context: StepContext) -> dict[str, str]:
        await context.save(secret="checkpoint-secret")
        return {"secret": "result-secret"}

    async def second(self, context: StepContext) -> None:
        await context.progress(0.5, "half way")
        await self.go.wait()
        if self.fail:
            raise Conflict("The name is taken")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def client(lab: Lab, gate: Gate) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.add_middleware(ByHeader)
    problems.install(app, Metrics("lab"))
    operations = Operations(lab.uow, [gate.saga, gate.fixed])
    app.include_router(operations_router(operations, lab.notifications, area="vms"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://lab/api/v1") as client:
        yield client


def by(who: str) -> dict[str, str]:
    return {"x-caller": who}


async def events(client: httpx.AsyncClient, operation_id: str, who: str = "ada") -> list[dict[str, Any]]:
    """All events of a stream, which ends by itself; httpx's ASGI transport gives them when it has ended."""
    answer = await client.get(f"/operations/{operation_id}/events", headers=by(who) | {"last-event-id": "not ours"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block for block in answer.text.split("\n\n") if block and not block.startswith(":")]
    parsed = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
    assert all(block["event"] == "operation" and block["id"].isdigit() for block in parsed)
    return [json.loads(block["data"]) for block in parsed]


async def test_an_operation_shows_its_course_and_none_of_its_secrets(
    client: httpx.AsyncClient, lab: Lab, gate: Gate, eventually: Eventually
) -> None:
    operation_id = await lab.enqueue("gate", resource="vm-1", password="input-secret")
    await lab.runner(gate.saga)

    async def half_way() -> bool:
        return bool(
            (await client.get(f"/operations/{operation_id}", headers=by("ada"))).json()["message"] == "half way"
        )

    await eventually(half_way)
    answer = await client.get(f"/operations/{operation_id}", headers=by("ada"))
    shown = answer.json()
    assert list(shown) == FIELDS
    assert shown["resource"] == {"type": "vm", "id": "vm-1"}
    assert (shown["state"], shown["step"], shown["progress"]) == ("running", "second", 0.75)
    assert [(step["name"], step["state"]) for step in shown["steps"]] == [("first", "done"), ("second", "running")]
    assert shown["error"] is None
    gate.go.set()
    await eventually(lambda: lab.ended(operation_id))
    listed = await client.get("/operations", headers=by("ada"))
    streamed = await client.get(f"/operations/{operation_id}/events", headers=by("ada"))
    assert "secret" not in answer.text + listed.text + streamed.text


async def test_a_pending_operation_shows_the_steps_it_will_take(client: httpx.AsyncClient, lab: Lab) -> None:
    operation_id = await lab.enqueue("gate")
    shown = (await client.get(f"/operations/{operation_id}", headers=by("ada"))).json()
    assert (shown["state"], shown["attempts"]) == ("pending", 0)
    assert [step["name"] for step in shown["steps"]] == ["first", "second"]


async def test_accepted_work_answers_202_with_its_location_and_its_resource(lab: Lab) -> None:
    operation = await lab.get(await lab.enqueue("gate"))
    answer = accepted(operation, vm={"id": "7"})
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/v1/operations/{operation.id}"
    body = json.loads(bytes(answer.body))
    assert list(body) == [*FIELDS, "vm"]
    assert (body["id"], body["vm"]) == (operation.id, {"id": "7"})


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("GET", "/{id}", {"ada": 200, "bob": 404, "root": 200, "vms": 403, "": 401}),
        ("GET", "/{id}/events", {"bob": 404, "vms": 403, "": 401}),
        ("DELETE", "/{id}", {"bob": 404, "vms": 403, "": 401, "ada": 200, "root": 200}),
        ("POST", "/{id}/resume", {"ada": 403, "bob": 403, "vms": 403, "": 401, "root": 409}),
        ("GET", "", {"ada": 200, "bob": 200, "root": 200, "vms": 403, "": 401}),
    ],
)
async def test_operations_are_for_their_owner_and_admins(
    client: httpx.AsyncClient, lab: Lab, method: str, path: str, statuses: dict[str, int]
) -> None:
    operation_id = await lab.enqueue("gate", owner="ada")
    for who, status in statuses.items():
        answer = await client.request(method, "/operations" + path.format(id=operation_id), headers=by(who))
        assert answer.status_code == status, who
        if status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert "gate" not in answer.text


async def test_an_unknown_operation_and_a_foreign_one_look_the_same(client: httpx.AsyncClient, lab: Lab) -> None:
    foreign = await lab.enqueue("gate", owner="ada")
    for method, suffix in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        answers = [
            await client.request(method, f"/operations/{one}{suffix}", headers=by("bob"))
            for one in (foreign, "op_lab_none")
        ]
        assert [answer.status_code for answer in answers] == [404, 404]
        first, second = (
            {**json.loads(answer.text.replace(foreign, "X").replace("op_lab_none", "X")), "trace_id": "differs"}
            for answer in answers
        )
        assert first == second


async def test_lists_are_pages_of_ones_own_newest_first(client: httpx.AsyncClient, lab: Lab) -> None:
    mine = [await lab.enqueue("gate", owner="ada") for _ in range(5)]
    await lab.enqueue("gate", owner="bob")
    seen: list[str] = []
    path = "?limit=2"
    while path:
        answer = await client.get("/operations" + path, headers=by("ada"))
        body = answer.json()
        seen += [one["id"] for one in body["items"]]
        path = f"?limit=2&cursor={body['next_cursor']}" if body["next_cursor"] else ""
        assert ('rel="next"' in answer.headers.get("link", "")) == bool(path)
    assert seen == sorted(mine, reverse=True)
    everything = (await client.get("/operations", headers=by("root"))).json()["items"]
    assert len(everything) == 6


async def test_lists_can_be_filtered(client: httpx.AsyncClient, lab: Lab, gate: Gate, eventually: Eventually) -> None:
    gate.go.set()
    done = await lab.enqueue("gate", resource="vm-1")
    await lab.runner(gate.saga)
    await eventually(lambda: lab.ended(done))
    waiting = await lab.enqueue("fixed", resource="vm-2")

    async def ids(query: str) -> list[str]:
        answer = await client.get(f"/operations?{query}", headers=by("ada"))
        assert answer.status_code == 200
        return [one["id"] for one in answer.json()["items"]]

    assert await ids("state=succeeded") == [done]
    assert await ids("kind=fixed") == [waiting]
    assert await ids("resource=vm/vm-2") == [waiting]
    assert await ids("resource=vm-1") == [done]
    assert await ids("resource=stack/vm-1") == []
    assert await ids("sort=created_at") == [done, waiting]
    assert (await client.get("/operations?state=strange", headers=by("ada"))).status_code == 422
    assert (await client.get("/operations?sort=owner_id", headers=by("ada"))).status_code == 422


async def test_a_stream_gives_the_present_then_each_change_and_ends_with_the_final_state(
    client: httpx.AsyncClient, lab: Lab, gate: Gate, eventually: Eventually
) -> None:
    operation_id = await lab.enqueue("gate")
    reading = asyncio.create_task(events(client, operation_id))
    queues = lab.notifications._waiters["telar_operations"]
    await eventually(lambda: any(queue._getters for queue in queues))  # it has read the present and waits for more
    await lab.runner(gate.saga)

    async def half_way() -> bool:
        return (await lab.get(operation_id)).message == "half way"

    await eventually(half_way)
    gate.go.set()
    seen = await asyncio.wait_for(reading, 10)
    assert seen[0]["state"] == "pending"
    assert seen[-1]["state"] == "succeeded"
    assert {one["state"] for one in seen} == {"pending", "running", "succeeded"}
    assert [one["updated_at"] for one in seen] == sorted(one["updated_at"] for one in seen)
    assert all(before != after for before, after in itertools.pairwise(seen))


async def test_the_stream_of_an_ended_operation_gives_its_end_alone(
    client: httpx.AsyncClient, lab: Lab, gate: Gate, eventually: Eventually
) -> None:
    gate.go.set()
    gate.fail = True
    operation_id = await lab.enqueue("gate")
    await lab.runner(gate.saga)
    await eventually(lambda: lab.ended(operation_id))
    (only,) = await events(client, operation_id, "root")
    assert (only["state"], only["error"]["detail"]) == ("failed", "The name is taken")


async def test_many_streams_share_the_one_listening_connection_and_hold_none(
    client: httpx.AsyncClient, lab: Lab, gate: Gate, eventually: Eventually
) -> None:
    operation_id = await lab.enqueue("gate")
    await lab.runner(gate.saga)
    streams = [asyncio.create_task(events(client, operation_id)) for _ in range(30)]
    queues = lab.notifications._waiters["telar_operations"]
    await eventually(lambda: len(queues) >= 30)
    await eventually(lambda: lab.database.pool_status()[0] == 0)
    listening = await lab.sql(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    )
    assert len(listening) == 1
    gate.go.set()
    for seen in await asyncio.gather(*streams):
        assert seen[-1]["state"] == "succeeded"


async def test_a_running_operation_is_cancelled_with_202_and_a_fixed_one_refused_with_409(
    client: httpx.AsyncClient, lab: Lab, gate: Gate, eventually: Eventually
) -> None:
    operation_id, fixed_id = await lab.enqueue("gate"), await lab.enqueue("fixed")
    await lab.runner(gate.saga, gate.fixed)

    async def both_run() -> bool:
        return all([(await lab.get(one)).step == "second" for one in (operation_id, fixed_id)])

    await eventually(both_run)
    answer = await client.delete(f"/operations/{operation_id}", headers=by("ada"))
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/v1/operations/{operation_id}"
    await eventually(lambda: lab.ended(operation_id))
    assert (await client.delete(f"/operations/{operation_id}", headers=by("ada"))).status_code == 200
    assert (await lab.get(operation_id)).state is State.CANCELLED

    refused = await client.delete(f"/operations/{fixed_id}", headers=by("ada"))
    assert refused.status_code == 409
    assert refused.json()["type"] == "/problems/operation-not-cancellable"
    assert "run to their end once begun" in refused.json()["detail"]
    gate.go.set()
    await eventually(lambda: lab.ended(fixed_id))


async def test_an_admin_resumes_an_operation_that_needs_an_operator(client: httpx.AsyncClient, lab: Lab) -> None:
    operation_id = await lab.enqueue("gate")
    await lab.sql(
        "UPDATE operations SET state = 'needs_operator', direction = 'backward' WHERE id = :id", id=operation_id
    )
    answer = await client.post(f"/operations/{operation_id}/resume", headers=by("root"))
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    stored = await lab.get(operation_id)
    assert (stored.state, stored.direction) == (State.PENDING, "backward")


async def test_a_key_needs_the_services_scope_to_look_at_its_operations_and_to_change_them(
    client: httpx.AsyncClient, lab: Lab
) -> None:
    where = f"/operations/{await lab.enqueue('gate', resource='vm-1')}"
    told = {who: await client.get(where, headers=by(who)) for who in ("ada's key", "ada's reading key")}
    assert [answer.status_code for answer in told.values()] == [403, 200]
    assert (await client.get("/operations", headers=by("ada's key"))).status_code == 403
    assert (await client.delete(where, headers=by("ada's reading key"))).status_code == 403
    assert (await client.get(where, headers=by("ada"))).json()["state"] == "pending"
    assert (await client.delete(where, headers=by("ada"))).status_code == 200
