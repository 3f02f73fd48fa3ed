"""Lists against a model of them: every order, filter and reader gives each image once, whatever way finds it."""

import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from libs.common.db import Database
from libs.common.names import FEW
from libs.common.pagination import PageRequest, page
from services.images.domain import Visibility
from services.images.main import migrate
from services.images.models import SORTABLE
from services.images.repository import ImageFilter, ImageRepository, sort_value
from services.images.repository.listing import page_of
from tests.contract.images.harness import settings

COUNT = 6000
READERS = (None, "much", "little", "member", "nobody")
SORTS = tuple(f"{sign}{name}" for name in SORTABLE for sign in ("", "-"))


@dataclass(frozen=True)
class Row:
    """What the model knows of an image."""

    id: Any
    owner_id: str
    name: str
    os_type: str
    architecture: str
    format: str
    status: str
    visibility: str
    size_bytes: int
    downloads: int
    created_at: Any
    updated_at: Any

    def may_be_read_by(self, reader: str | None, shared: set[tuple[Any, str]]) -> bool:
        if reader is None or self.owner_id == reader:
            return True
        if self.status not in ("active", "deactivated"):
            return False
        return self.visibility == "public" or (self.visibility == "shared" and (self.id, reader) in shared)

    def fits(self, wanted: ImageFilter) -> bool:
        same = ("architecture", "format", "status", "visibility")
        return (
            (wanted.name is None or wanted.name.lower() in self.name.lower())
            and (wanted.os_type is None or wanted.os_type.lower() == self.os_type.lower())
            and all(getattr(wanted, name) in (None, getattr(self, name)) for name in same)
        )


FILL = """
INSERT INTO images (id, owner_id, name, os_type, os_version, architecture, description, format, status, visibility,
  protected, tags, size_bytes, virtual_size_bytes, downloads, version, created_at, updated_at, min_disk_gib,
  min_memory_mib, provenance)
SELECT gen_random_uuid(),
  CASE WHEN i %% 3 = 0 THEN 'much' WHEN i %% 500 = 1 THEN 'little' ELSE 'other' || i %% 9 END,
  (ARRAY['ubuntu', 'Debian', 'win100%%_'])[1 + i %% 3] || lpad((random() * 99999)::int::text, 5, '0'),
  CASE WHEN i %% 700 = 0 THEN 'Plan9' ELSE (ARRAY['Ubuntu', 'Debian', 'Windows'])[1 + i %% 3] END, '',
  CASE WHEN random() < 0.9 THEN 'x86_64' ELSE 'aarch64' END, '',
  (ARRAY['qcow2', 'iso', 'raw'])[1 + (random() * 2)::int],
  CASE WHEN random() < 0.8 THEN 'active'
    ELSE (ARRAY['deactivated', 'rejected', 'queued'])[1 + (random() * 2)::int] END,
  (ARRAY['public', 'shared', 'private', 'private'])[1 + (random() * 3)::int],
  false, '{}', (random() * 50)::int, 0, (random() * 3)::int, 1, now() - (random() * 500)::int * interval '1 minute',
  now() - (random() * 500)::int * interval '1 minute', 0, 0, '{}'
FROM generate_series(1, %s) i
"""


@pytest.fixture(scope="module")
async def database(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    await migrate(settings(database_url, tmp_path_factory.mktemp("images")))
    with psycopg.connect(database_url) as connection:
        connection.execute("SELECT setseed(0.3)")
        connection.execute(FILL, (COUNT,))
        connection.execute("INSERT INTO image_members SELECT id, 'member' FROM images WHERE random() < 0.3")
        connection.commit()
        connection.execute("ANALYZE images, image_members")
    database = Database(database_url, pool_size=2)
    yield database
    await database.close()


@pytest.fixture(scope="module")
async def rows(database: Database) -> list[Row]:
    columns = ", ".join(Row.__dataclass_fields__)
    async with database.session() as session:
        found = await session.execute(text(f"SELECT {columns} FROM images"))  # noqa: S608 - names of our own columns
        return [Row(*row) for row in found]


@pytest.fixture(scope="module")
async def shared(database: Database) -> set[tuple[Any, str]]:
    async with database.session() as session:
        return {(row[0], row[1]) for row in await session.execute(text("SELECT image_id, user_id FROM image_members"))}


async def listed(database: Database, wanted: ImageFilter, sort: str, reader: str | None, limit: int) -> list[Any]:
    """The ids on every page, read as the service reads them."""
    ids: list[Any] = []
    cursor: str | None = None
    while True:
        request = PageRequest(limit=limit, cursor=cursor, sort=sort)
        async with database.session() as session:
            found = await ImageRepository(session).list(wanted, request, reader_id=reader)
        shown, cursor = page(found, request, position=lambda image: sort_value(image, sort))
        ids += [image.id for image in shown]
        if cursor is None:
            return ids


def combinations() -> Iterator[tuple[dict[str, Any], str, str | None]]:
    """Every order, every reader and every filter in many mixtures."""
    filters: list[dict[str, Any]] = [
        {},
        {"name": "UBUNTU"},  # of a third of all
        {"name": "77"},
        {"name": "%_0"},
        {"name": "debian123"},
        {"name": "9"},
        {"name": "nothing has this"},
        {"os_type": "plan9"},
        {"os_type": "WINDOWS", "architecture": "aarch64"},
        {"format": "iso", "status": "active"},
        {"status": "deactivated"},
        {"status": "queued"},
        {"visibility": Visibility.PRIVATE},
        {"visibility": Visibility.SHARED, "name": "u"},
        {"visibility": Visibility.PUBLIC, "os_type": "debian"},
    ]
    pick = random.Random(5)  # noqa: S311 - a repeatable choice
    for narrowed in filters:
        for reader in READERS:
            yield narrowed, pick.choice(SORTS), reader
    for sort in SORTS:
        yield {}, sort, "much"
        yield {"name": "ubuntu"}, sort, None


@pytest.mark.parametrize(("narrowed", "sort", "reader"), list(combinations()), ids=str)
async def test_a_list_is_what_the_model_says_in_its_order(
    database: Database,
    rows: list[Row],
    shared: set[tuple[Any, str]],
    narrowed: dict[str, Any],
    sort: str,
    reader: str | None,
) -> None:
    wanted = ImageFilter(**narrowed)
    found = [row for row in rows if row.may_be_read_by(reader, shared) and row.fits(wanted)]
    found.sort(key=lambda row: (getattr(row, sort.lstrip("-")), row.id), reverse=sort.startswith("-"))
    assert await listed(database, wanted, sort, reader, 200) == [row.id for row in found]


async def test_pages_of_any_size_give_the_same_list(database: Database) -> None:
    wanted = ImageFilter(name="77")
    whole = await listed(database, wanted, "-downloads", "much", 200)
    assert len(whole) > 20
    for limit in (1, 7):
        assert await listed(database, wanted, "-downloads", "much", limit) == whole


def test_the_names_meet_both_ways_of_finding_them(rows: list[Row]) -> None:
    assert sum(row.fits(ImageFilter(name="ubuntu")) for row in rows) > FEW
    assert 0 < sum(row.fits(ImageFilter(name="77")) for row in rows) < FEW


async def blocks_read(database: Database, sort: str, reader: str | None, cursor: str | None) -> tuple[int, str | None]:
    """How many blocks of the database a page costs, and the cursor after it."""
    request = PageRequest(limit=50, cursor=cursor, sort=sort)
    query, values = page_of(ImageFilter(), request, reader_id=reader)
    bound = query.params(values)
    statement = bound.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})  # type: ignore[no-untyped-call]  # SQLAlchemy's own
    explaining = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".replace(":", "\\:"))
    async with database.session() as session:
        plan = (await session.execute(explaining)).scalar_one()[0]["Plan"]
        found = await ImageRepository(session).list(ImageFilter(), request, reader_id=reader)
    cursor = page(found, request, position=lambda image: sort_value(image, sort))[1]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], cursor


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("reader", [None, "much"])
async def test_a_deep_page_costs_what_the_first_one_does(database: Database, sort: str, reader: str | None) -> None:
    costs, cursor = [], None
    for _ in range(30):
        blocks, cursor = await blocks_read(database, sort, reader, cursor)
        costs.append(blocks)
        if cursor is None:
            break
    assert len(costs) == 30
    assert max(costs[20:]) < 2 * max(costs[:5])


async def test_another_owners_images_are_not_walked_through(database: Database) -> None:
    blocks, _ = await blocks_read(database, "-created_at", "nobody", None)
    few, _ = await blocks_read(database, "-created_at", "little", None)
    everybodys, _ = await blocks_read(database, "-created_at", None, None)
    assert max(blocks, few) < 3 * everybodys
