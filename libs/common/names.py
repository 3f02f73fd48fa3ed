"""Parts of names: narrows a list to the names with some letters in them, by whichever of two ways is short.

What is rare is found by its letters, in an index of all short parts of names, and sorted; what is frequent is met on
the way through the list's order. The database tells which by counting up to `FEW`.
"""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Index, Text, bindparam, func, or_, select, text
from sqlalchemy.dialects.postgresql import ARRAY

FEW = 1000
"""So many rows are sorted about as fast as an order is walked to a page of them."""
NAME_GRAMS = (
    "CREATE FUNCTION name_grams(value text, shortest int, longest int) RETURNS text[]"
    " LANGUAGE sql IMMUTABLE PARALLEL SAFE"
    " RETURN (SELECT array_agg(DISTINCT substr(lower(value), start, size)) FROM generate_series(shortest, longest)"
    " AS size, generate_series(1, length(value) - size + 1) AS start)"
)
"""Every part of a text that is `shortest` to `longest` characters long, in small letters: what the extension pg_trgm
does, which not every server has. A migration runs it before it creates the index."""
_FREQUENT = FEW // 50
"""So many matches among the newest `FEW` rows promise a full page after a short walk."""
_LONGEST_GRAM = 3
_PART = bindparam("name", type_=Text)


def grams_index(table: str) -> Index:
    """The index by which a table's names are found."""
    return Index(
        f"{table}_name_grams",
        text(f"name_grams(name, 1, {_LONGEST_GRAM})"),
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )


def matches(name: Any) -> ColumnElement[bool]:
    """Whether a name has the letters of the parameter `name` in it, in any case."""
    return func.strpos(func.lower(name), func.lower(_PART)) > 0


def few_of(
    records: Any, columns: Iterable[str], conditions: Iterable[ColumnElement[bool]]
) -> tuple[Any, ColumnElement[bool]]:
    """Up to `FEW` matching records and one more, found by their letters; and whether there are more of them.

    That is guessed from the newest, else counted. `records` has columns `id` and `name`; `conditions` are all those of
    the list, `matches` among them.
    """
    newest = select(records.name).order_by(records.id.desc()).limit(FEW).subquery()
    some = select(func.count()).select_from(newest).where(matches(newest.c.name)).scalar_subquery()
    needed = func.name_grams(_PART, func.least(func.length(_PART), _LONGEST_GRAM), _LONGEST_GRAM, type_=ARRAY(Text))
    has_grams = func.name_grams(records.name, 1, _LONGEST_GRAM, type_=ARRAY(Text)).contains(needed)
    wanted = (getattr(records, name) for name in ("id", *columns))
    few = select(*wanted).where(*conditions, has_grams).limit(FEW + 1).cte("few")
    counted = select(func.count()).select_from(few).scalar_subquery()
    many = select(or_(some > _FREQUENT, counted > FEW).label("are")).cte("many")
    return few.c, select(many.c.are).scalar_subquery()
