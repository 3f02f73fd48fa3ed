import asyncio
import hashlib
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import Column, Identity, Integer, MetaData, Table, Text, func, insert, select, text
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.common.auth import Principal, Role
from libs.common.db import Database, transaction
from libs.common.errors import Conflict
from libs.common.idempotency import IdempotencyMiddleware, SqlIdempotencyStore, keys_table
from libs.common.problems import install
from libs.common.telemetry import Metrics
from libs.common.uow import UnitOfWorkFactory

SECRET = SecretStr("what all replicas share")
orders = Table("orders", MetaData(), Column("id", Integer, Identity(), primary_key=True), Column("name", Text))


class As:
    """Stands for the authentication in front: everybody is the user named in a header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            user = dict(scope["headers"]).get(b"x-test-user", b"ada").decode()
            principal = Principal(user, user, Role.CLIENT, "s", frozenset({"*"}), 0.0, 9e9)
            scope.setdefault("state", {})["identity"] = principal
        await self._app(scope, receive, send)


class Crash(BaseException):
    """The process dies here, as far as the request can tell."""


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """An app whose POST stores an order; its answer can be made to fail before or after the commit."""
    async with database.engine.begin() as connection:
        await connection.run_sync(orders.metadata.drop_all)
        await connection.run_sync(orders.metadata.create_all)
        await connection.execute(keys_table.delete())
    uow = UnitOfWorkFactory(database, source="/telar/shop")
    app = FastAPI()

    @app.post("/orders", status_code=201)
    async def order(body: dict[str, str]) -> dict[str, int]:
        async with uow() as unit:
            if body.get("fail") == "conflict":
                raise Conflict("no")
            await asyncio.sleep(0)
            order_id = await unit.session.scalar(insert(orders).values(name=body["name"]).returning(orders.c.id))
            await unit.commit()
        if body.get("fail") == "after":
            raise Crash
        return {"id": int(order_id or 0)}

    install(app, Metrics("shop"))
    wrapped = As(IdempotencyMiddleware(app, store=SqlIdempotencyStore(database), secret=SECRET))
    transport = httpx.ASGITransport(wrapped)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        yield client


async def count(database: Database) -> int:
    async with transaction(database) as session:
        return int(await session.scalar(select(func.count()).select_from(orders)) or 0)


async def test_nobody_guesses_a_body_by_the_fingerprint_that_is_kept_of_it(
    shop: httpx.AsyncClient, database: Database
) -> None:
    answer = await shop.post("/orders", json={"name": "a password"}, headers={"Idempotency-Key": "k"})
    async with transaction(database) as session:
        kept = await session.scalar(select(keys_table.c.fingerprint))
    told = b"/orders?\n" + answer.request.content
    assert kept not in {hashlib.new(name, told).hexdigest() for name in ("md5", "sha1", "sha256", "sha512")}


async def test_a_hundred_equal_keys_at_once_give_one_resource_and_one_answer(
    shop: httpx.AsyncClient, database: Database
) -> None:
    answers = await asyncio.gather(
        *(shop.post("/orders", json={"name": "one"}, headers={"idempotency-key": "k-1"}) for _ in range(100))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert await count(database) == 1


async def test_without_a_key_each_request_counts(shop: httpx.AsyncClient, database: Database) -> None:
    for _ in range(2):
        await shop.post("/orders", json={"name": "one"})
    assert await count(database) == 2


async def test_a_key_belongs_to_its_caller(shop: httpx.AsyncClient, database: Database) -> None:
    for user in ("ada", "bob"):
        answer = await shop.post(
            "/orders", json={"name": "one"}, headers={"idempotency-key": "same", "x-test-user": user}
        )
        assert answer.status_code == 201
    assert await count(database) == 2


async def test_a_key_used_for_another_request_is_refused(shop: httpx.AsyncClient, database: Database) -> None:
    headers = {"idempotency-key": "k-2"}
    assert (await shop.post("/orders", json={"name": "one"}, headers=headers)).status_code == 201
    other = await shop.post("/orders", json={"name": "two"}, headers=headers)
    assert other.status_code == 422
    assert other.json()["type"] == "/problems/idempotency-key-reused"
    assert await count(database) == 1


async def test_a_refusal_frees_the_key(shop: httpx.AsyncClient, database: Database) -> None:
    headers = {"idempotency-key": "k-3"}
    refused = await shop.post("/orders", json={"name": "x", "fail": "conflict"}, headers=headers)
    assert refused.status_code == 409
    assert (await shop.post("/orders", json={"name": "x"}, headers=headers)).status_code == 201
    assert await count(database) == 1


async def test_a_change_whose_answer_was_lost_is_never_repeated(shop: httpx.AsyncClient, database: Database) -> None:
    headers = {"idempotency-key": "k-4"}
    body = {"name": "one", "fail": "after"}
    with pytest.raises(Crash):
        await shop.post("/orders", json=body, headers=headers)
    assert await count(database) == 1
    async with transaction(database) as session:
        await session.execute(text("UPDATE idempotency_keys SET lease_until = now() - interval '1 second'"))
    again = await shop.post("/orders", json=body, headers=headers)
    assert again.status_code == 409
    assert again.json()["type"] == "/problems/idempotency-answer-lost"
    assert await count(database) == 1


async def test_a_dead_process_lets_go_of_a_key_it_changed_nothing_under(
    shop: httpx.AsyncClient, database: Database
) -> None:
    store = SqlIdempotencyStore(database)
    headers = {"idempotency-key": "k-5"}
    first = await shop.post("/orders", json={"name": "one"}, headers=headers)
    async with transaction(database) as session:
        await session.execute(
            text("UPDATE idempotency_keys SET state = 'running', lease_until = now() - interval '1 second'")
        )
    again = await shop.post("/orders", json={"name": "one"}, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() != again.json()
    await store.sweep()


@pytest.mark.parametrize("key", ["", "x" * 256, '""'])
async def test_a_key_that_is_none_is_malformed(shop: httpx.AsyncClient, key: str) -> None:
    answer = await shop.post("/orders", json={"name": "one"}, headers={"idempotency-key": key})
    assert answer.status_code == 400
