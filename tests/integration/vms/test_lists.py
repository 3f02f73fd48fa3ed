"""Lists against a model of them, whatever way finds the machines; and what pages cost."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from libs.common.db import Database
from libs.common.errors import Invalid
from libs.common.names import FEW
from libs.common.pagination import PageRequest, page
from services.vms.domain.states import State
from services.vms.main import migrate
from services.vms.models import SORTABLE
from services.vms.repository import VmFilter, VmRepository, sort_value
from services.vms.repository.listing import page_of
from tests.contract.vms.harness import settings

COUNT = 20_000
READERS = (None, "much", "little", "nobody")
SORTS = tuple(f"{sign}{name}" for name in SORTABLE for sign in ("", "-"))
FILL = """
INSERT INTO vms (id, owner_id, name, os_type, template, cluster, node, vmid, state, cores, memory_mib, disk_gib,
  restart_needed, reserved, ha, addresses, version, created_at, updated_at, state_at)
SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid,
  CASE WHEN i %% 3 = 0 THEN 'much' WHEN i %% 500 = 1 THEN 'little' ELSE 'other' || i %% 9 END,
  (ARRAY['web', 'DB', 'lab100%%_'])[1 + i %% 3] || lpad((random() * 99999)::int::text, 5, '0'), 'debian', 'debian',
  'lab', 'sv' || i %% 20, i, CASE WHEN i %% 1000 = 0 THEN 'error' ELSE 'running' END, i %% 4, 512, i %% 50,
  false, '{}', false, '[]', 1, now() - (random() * 500)::int * interval '1 minute',
  now() - (random() * 500)::int * interval '1 minute', now()
FROM generate_series(1, %s) i
"""
FILTERS: list[dict[str, Any]] = [
    {},
    {"name": "WEB"},
    {"name": "77"},
    {"name": "%_0"},
    {"name": "db123"},
    {"name": "9"},
    {"name": "nothing has this"},
    {"state": State.ERROR},
    {"state": State.ERROR, "name": "lab"},
    {"node": "sv3", "name": "7"},
]


@pytest.fixture(scope="module")
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(settings(database_url, None))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT setseed(0.3)")
        connection.execute(FILL, (COUNT,))
        connection.execute("VACUUM ANALYZE vms")
    database = Database(database_url, pool_size=2)
    yield database
    await database.close()


@pytest.fixture(scope="module")
async def rows(database: Database) -> list[Any]:
    async with database.looking() as session:
        found = await session.execute(text("SELECT * FROM vms"))
        return list(found.all())


async def listed(database: Database, wanted: VmFilter, sort: str, reader: str | None, limit: int) -> list[Any]:
    """The ids on every page, read as the service reads them."""
    ids: list[Any] = []
    cursor: str | None = None
    while True:
        request = PageRequest(limit=limit, cursor=cursor, sort=sort)
        async with database.looking() as session:
            found = await VmRepository(session).list(wanted, request, owner_id=reader)
        shown, cursor = page(found, request, position=lambda vm: sort_value(vm, sort))
        ids += [vm.id for vm in shown]
        if cursor is None:
            return ids


def fits(row: Any, narrowed: Mapping[str, Any], reader: str | None) -> bool:
    given = {name: value for name, value in narrowed.items() if name != "name"} | (
        {"owner_id": reader} if reader else {}
    )
    return narrowed.get("name", "").lower() in row.name.lower() and all(
        getattr(row, name) == value for name, value in given.items()
    )


def combinations() -> Iterator[tuple[dict[str, Any], str, str | None]]:
    for number, narrowed in enumerate(FILTERS):
        for reader in READERS:
            yield narrowed, SORTS[(5 * number) % len(SORTS)], reader
    for sort in SORTS:
        yield {"name": "web"}, sort, None
        yield {"name": "77"}, sort, "much"


@pytest.mark.parametrize(("narrowed", "sort", "reader"), list(combinations()), ids=str)
async def test_a_list_is_what_the_model_says_in_its_order(
    database: Database, rows: list[Any], narrowed: dict[str, Any], sort: str, reader: str | None
) -> None:
    found = [row for row in rows if fits(row, narrowed, reader)]
    found.sort(key=lambda row: (getattr(row, sort.lstrip("-")), row.id), reverse=sort.startswith("-"))
    assert await listed(database, VmFilter(**narrowed), sort, reader, 200) == [row.id for row in found]


def test_the_names_meet_both_ways_of_finding_them(rows: list[Any]) -> None:
    assert sum(fits(row, {"name": "web"}, None) for row in rows) > FEW
    assert 0 < sum(fits(row, {"name": "77"}, None) for row in rows) < FEW


def test_an_order_that_there_is_not_is_refused_whatever_the_filter() -> None:
    for wanted in (VmFilter(), VmFilter(name="web")):
        with pytest.raises(Invalid, match="created_at"):
            page_of(wanted, PageRequest(sort="sealed_password"), owner_id=None)


async def plan_of(database: Database, wanted: VmFilter, sort: str, reader: str | None) -> dict[str, Any]:
    query, values = page_of(wanted, PageRequest(sort=sort), owner_id=reader)
    statement = query.params(values).compile(  # type: ignore[no-untyped-call]  # SQLAlchemy's own
        dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}
    )
    explaining = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".replace(":", "\\:"))
    async with database.looking() as session:
        plan: dict[str, Any] = (await session.execute(explaining)).scalar_one()[0]["Plan"]
    return plan


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("narrowed", [{}, {"name": "db123"}, {"name": "web"}, {"state": State.ERROR}], ids=str)
async def test_no_page_reads_the_whole_table(database: Database, narrowed: dict[str, Any], sort: str) -> None:
    whole = (await blocks_of_the_table(database)) // 2
    for reader in (None, "much"):
        plan = await plan_of(database, VmFilter(**narrowed), sort, reader)
        ran = [node for node in nodes_of(plan) if node["Actual Loops"]]
        assert [node["Relation Name"] for node in ran if node["Node Type"] == "Seq Scan"] == []
        if narrowed != {"name": "web"}:
            assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < whole + FEW


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes_of(part)


async def blocks_of_the_table(database: Database) -> int:
    async with database.looking() as session:
        return int((await session.execute(text("SELECT pg_relation_size('vms') / 8192"))).scalar_one())
