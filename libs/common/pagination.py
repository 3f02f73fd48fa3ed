"""Keyset pages: `?limit=&cursor=&sort=` in, `{items, next_cursor}` and `Link: rel="next"` out; never an offset."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Select, tuple_

from libs.common.errors import FieldError, Invalid

T = TypeVar("T")
Row = TypeVar("Row")
MAX_LIMIT = 200


class Page(BaseModel, Generic[T]):
    items: list[T]
    next_cursor: str | None = None


class PageRequest:
    """What a list's caller asks for: `limit` items after `cursor`, in the order `sort` (`name` up, `-name` down)."""

    def __init__(self, *, limit: int = 50, cursor: str | None = None, sort: str | None = None) -> None:
        self.limit = limit
        self.sort = sort
        self.after = _decode(cursor, sort) if cursor else None


def _page_request(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="How many items at most")] = 50,
    cursor: Annotated[str | None, Query(max_length=1000, description="next_cursor of the page before")] = None,
    sort: Annotated[str | None, Query(max_length=40, description="A field; with - before it, downwards")] = None,
) -> PageRequest:
    return PageRequest(limit=limit, cursor=cursor, sort=sort)


PageQuery = Annotated[PageRequest, Depends(_page_request)]


def encode_cursor(values: Sequence[Any], sort: str | None = None) -> str:
    """The cursor of what follows the row with these values: its sort value and key, or its key alone."""
    document = json.dumps([sort, *(_plain(value) for value in values)], separators=(",", ":"))
    return base64.urlsafe_b64encode(document.encode()).decode().rstrip("=")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"at": value.isoformat()}
    if isinstance(value, UUID):
        return {"uuid": str(value)}
    return value


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        return datetime.fromisoformat(value["at"]) if "at" in value else UUID(value["uuid"])
    return value


def _decode(cursor: str, sort: str | None) -> tuple[Any, ...]:
    try:
        document = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        known_sort, *values = document
        after = tuple(_rich(value) for value in values)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise foreign_cursor() from error
    if known_sort != sort or not after:
        raise foreign_cursor()
    return after


def foreign_cursor() -> Invalid:
    """What is raised for a cursor that the list did not give."""
    return Invalid(
        "The cursor is not one that this list gave; start again without it",
        errors=[FieldError("/query/cursor", "not a cursor of this list and sort order")],
    )


def keyset(
    query: Select[Any],
    request: PageRequest,
    *,
    columns: Mapping[str, ColumnElement[Any]],
    key: ColumnElement[Any],
    default: str,
) -> Select[Any]:
    """Order and bound a query by the request. `columns` are the sortable ones by name, `key` is unique (the id).

    Asks for one row more than the limit, from which `page` knows whether there is a next page.
    Raises Invalid for a field that cannot be sorted by.
    """
    name = request.sort or default
    column = columns.get(name.lstrip("-"))
    if column is None:
        allowed = ", ".join(sorted(columns))
        raise Invalid(f"Lists can be sorted by {allowed}", errors=[FieldError("/query/sort", f"not one of {allowed}")])
    down = name.startswith("-")
    same = column is key
    if request.after is not None:
        query = query.where(_after(request.after, column, key, down=down, same=same))
    order = [column.desc() if down else column.asc()]
    if not same:
        order.append(key.desc() if down else key.asc())
    return query.order_by(*order).limit(request.limit + 1)


def _after(
    after: tuple[Any, ...], column: ColumnElement[Any], key: ColumnElement[Any], *, down: bool, same: bool
) -> ColumnElement[bool]:
    if len(after) != (1 if same else 2):
        raise foreign_cursor()
    value, last = after[0], after[-1]
    if not (_fits(value, column) and _fits(last, key)):
        raise foreign_cursor()
    # A row comparison, since an index cannot begin at an OR of its columns: page n would read all pages before it.
    place, seen = (column, value) if same else (tuple_(column, key), tuple_(value, last))
    beyond: ColumnElement[bool] = place < seen if down else place > seen
    return beyond


def _fits(value: Any, column: ColumnElement[Any]) -> bool:
    """Whether a cursor's value can be compared with a column: a forged one must not reach the database."""
    expected = column.type.python_type
    return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))


def page(
    rows: Sequence[Row],
    request: PageRequest,
    *,
    position: Callable[[Row], Sequence[Any]],
    http: tuple[Request, Response] | None = None,
) -> tuple[Sequence[Row], str | None]:
    """Cut the extra row off and give the cursor of the next page, also as a Link header (RFC 8288) if `http` is given.

    `position` gives a row's sort value and key, or the key alone when sorted by it.
    """
    if len(rows) <= request.limit:
        return rows, None
    shown = rows[: request.limit]
    cursor = encode_cursor(position(shown[-1]), request.sort)
    if http is not None:
        link_next(*http, cursor)
    return shown, cursor


def link_next(request: Request, response: Response, cursor: str) -> None:
    """Tell where the next page is (RFC 8288)."""
    target = request.url.include_query_params(cursor=cursor)
    response.headers["link"] = f'<{target.path}?{target.query}>; rel="next"'
