import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine, insert, select

from libs.common.errors import Invalid
from libs.common.pagination import PageRequest, keyset, page

things = Table("things", MetaData(), Column("id", Integer, primary_key=True), Column("name", Text))
COLUMNS = {"id": things.c.id, "name": things.c.name}


def walk(names: list[str], limit: int, sort: str | None) -> list[tuple[int, str]]:
    """Read a list page by page, as a client does."""
    engine = create_engine("sqlite://")  # one connection in memory is all that the query's meaning needs
    things.metadata.create_all(engine)
    seen: list[tuple[int, str]] = []
    with engine.connect() as connection:
        if names:
            connection.execute(insert(things), [{"name": name} for name in names])
        cursor: str | None = None
        while True:
            request = PageRequest(limit=limit, cursor=cursor, sort=sort)
            query = keyset(select(things), request, columns=COLUMNS, key=things.c.id, default="id")
            rows = connection.execute(query).all()
            by_id = (sort or "id").lstrip("-") == "id"
            shown, cursor = page(
                rows, request, position=lambda row, by_id=by_id: (row.id,) if by_id else (row.name, row.id)
            )
            seen += [(row.id, row.name) for row in shown]
            if cursor is None:
                break
    engine.dispose()
    return seen


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(["a", "b", "c"]), max_size=30),
    limit=st.integers(1, 7),
    sort=st.sampled_from([None, "id", "-id", "name", "-name"]),
)
def test_pages_together_are_the_whole_list_once_in_order(names: list[str], limit: int, sort: str | None) -> None:
    rows = [(number, name) for number, name in enumerate(names, 1)]
    by_name = (sort or "id").endswith("name")
    expected = sorted(
        rows, key=lambda row: (row[1], row[0]) if by_name else (row[0],), reverse=(sort or "").startswith("-")
    )
    assert walk(names, limit, sort) == expected


@pytest.mark.parametrize("cursor", ["x", "!!!", "bnVsbA", "W10", "WzFd", "eyJhIjoxfQ"])
def test_a_cursor_of_no_list_is_refused(cursor: str) -> None:
    with pytest.raises(Invalid, match="cursor"):
        PageRequest(limit=10, cursor=cursor)


def test_a_cursor_of_another_order_is_refused() -> None:
    request = PageRequest(limit=1, sort="name")
    _, cursor = page([("a", 1), ("b", 2)], request, position=lambda row: row)
    with pytest.raises(Invalid):
        PageRequest(limit=1, sort="-name", cursor=cursor)


def test_an_unknown_field_cannot_be_sorted_by() -> None:
    with pytest.raises(Invalid, match="id, name"):
        keyset(select(things), PageRequest(sort="password"), columns=COLUMNS, key=things.c.id, default="id")
