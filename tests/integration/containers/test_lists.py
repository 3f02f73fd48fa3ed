"""What pages of stacks cost, in every order, for every reader and state."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text

from libs.common.db import Database
from libs.common.pagination import PageRequest, page
from services.containers.domain.stacks import State
from services.containers.main import migrate
from services.containers.models import SORTABLE
from services.containers.repository import StackRepository, sort_value
from tests.contract.containers.harness import settings

COUNT = 20_000
SORTS = tuple(f"{sign}{name}" for name in SORTABLE for sign in ("", "-"))
FILL = """
INSERT INTO stacks (id, owner_id, name, project, state, health, service_types, primary_app_type, variables, limits,
  services, compose, revision, latest_revision, reserved, version, created_at, updated_at)
SELECT gen_random_uuid(),
  CASE WHEN i %% 3 = 0 THEN 'much' WHEN i %% 500 = 1 THEN 'little' ELSE 'other' || i %% 9 END, 'stack-' || random(),
  'project-' || i, CASE WHEN i %% 1000 = 0 THEN 'failed' ELSE 'running' END, 'healthy', '{php}', 'php', '{}', '{}',
  '[]', repeat('services: ', 100), 1, 1, '{}', 1, now() - (random() * 500)::int * interval '1 minute',
  now() - (random() * 500)::int * interval '1 minute'
FROM generate_series(1, %s) i
"""


@pytest.fixture(scope="module")
async def database(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    await migrate(settings(database_url, Path(tmp_path_factory.mktemp("stacks"))))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT setseed(0.3)")
        connection.execute(FILL, (COUNT,))
        connection.execute("VACUUM ANALYZE stacks")
    database = Database(database_url, pool_size=2)
    yield database
    await database.close()


async def page_and_plan(
    database: Database, request: PageRequest, reader: str | None, state: State | None
) -> tuple[list[Any], str | None, dict[str, Any]]:
    """A page, the cursor after it, and how the database found it."""
    asked: list[tuple[Any, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        asked.append((statement, parameters))

    engine = database.engine.sync_engine
    async with database.looking() as session:
        event.listen(engine, "before_cursor_execute", note)
        found = await StackRepository(session).list(request, owner_id=reader, state=state)
        event.remove(engine, "before_cursor_execute", note)
        connection = await session.connection()
        statement, parameters = asked[0]
        explained = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
        plan: dict[str, Any] = explained.scalar_one()[0]["Plan"]
    shown, cursor = page(found, request, position=lambda stack: sort_value(stack, request.sort))
    return list(shown), cursor, plan


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes_of(part)


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("reader", [None, "much", "little", "nobody"])
@pytest.mark.parametrize("state", [None, State.RUNNING, State.FAILED, State.DELETING])
async def test_no_page_reads_the_whole_table(
    database: Database, sort: str, reader: str | None, state: State | None
) -> None:
    _, _, plan = await page_and_plan(database, PageRequest(sort=sort), reader, state)
    assert [node["Relation Name"] for node in nodes_of(plan) if node["Node Type"] == "Seq Scan"] == []


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("reader", [None, "much"])
async def test_a_deep_page_costs_what_the_first_one_does(database: Database, sort: str, reader: str | None) -> None:
    async with database.looking() as session:
        narrowed = "" if reader is None else "WHERE owner_id = 'much'"
        query = f"SELECT id FROM stacks {narrowed} ORDER BY {sort.lstrip('-')}, id"  # noqa: S608 - of our own words
        expected = list((await session.execute(text(query))).scalars())
    expected = expected[::-1] if sort.startswith("-") else expected
    costs, cursor, seen = [], None, list[Any]()
    for _ in range(20):
        shown, cursor, plan = await page_and_plan(
            database, PageRequest(limit=200, cursor=cursor, sort=sort), reader, None
        )
        seen += [stack.id for stack in shown]
        costs.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
    assert seen == expected[: len(seen)]
    assert max(costs[10:]) < 2 * max(costs[:5])
