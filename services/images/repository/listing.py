"""Pages of the images that someone may read: each order is walked along an index, however deep the page lies.

What a reader may see is a union of branches (own, public, shared with them), each one range of an index. A part of a
name is looked for in one of two ways, whichever is short (see `libs.common.names`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    Text,
    Uuid,
    and_,
    bindparam,
    func,
    not_,
    or_,
    select,
    true,
    tuple_,
    union,
)
from sqlmodel import col

from libs.common import names
from libs.common.pagination import PageRequest, keyset
from services.images.domain import SHOWN_TO_OTHERS, Format, Status, Visibility
from services.images.models import SORTABLE, Image, Member

DEFAULT_SORT = "-created_at"
_TIED = {"downloads"}
"""Most images share one value of these. The planner, which looks at the first column of a row comparison alone, would
think that hardly any image comes after it."""

Branch = Callable[[Any], ColumnElement[bool]]
"""Says of an image, or of columns like an image's, that it belongs to one part of what somebody may read."""


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """What a list is narrowed to; `name` matches any part, `os_type` the whole, both in any case."""

    name: str | None = None
    os_type: str | None = None
    architecture: str | None = None
    format: Format | None = None
    status: Status | None = None
    visibility: Visibility | None = None


@dataclass(frozen=True, slots=True)
class _Shape:
    """All that a page's statement depends on but its parameters: statements are made once, since that takes long."""

    narrowed_by: frozenset[str]
    visibility: Visibility | None
    reads_all: bool
    others_too: bool
    sort: str
    is_first: bool

    @property
    def visibilities(self) -> list[Visibility]:
        return list(Visibility) if self.visibility is None else [self.visibility]


def sort_value(image: Any, sort: str | None) -> Sequence[Any]:
    """An image's place in a list of that order, for the cursor."""
    return getattr(image, (sort or DEFAULT_SORT).lstrip("-")), image.id


def readable() -> ColumnElement[bool]:
    """That an image may be read by the parameter `reader`; None reads all."""
    shape = _Shape(frozenset(), None, reads_all=False, others_too=True, sort=DEFAULT_SORT, is_first=True)
    return or_(bindparam("reader", type_=Text).is_(None), *(branch(Image) for branch in _branches(shape)))


def page_of(
    wanted: ImageFilter, request: PageRequest, *, reader_id: str | None
) -> tuple[Select[Any], dict[str, str | int | UUID | None]]:
    """Ask for one page, and one image more if there are any, of what `reader_id` may read; None reads all.

    Gives a statement and its parameters; raises Invalid for an unknown order or a cursor of another list.
    """
    orders = {name: getattr(Image, name) for name in SORTABLE}
    key: Any = Image.id
    keyset(select(key), request, columns=orders, key=key, default=DEFAULT_SORT)  # refuses what it does not know
    given = {name: getattr(wanted, name) for name in ("name", "os_type", "architecture", "format", "status")}
    given = {name: str(value) for name, value in given.items() if value is not None}
    shape = _Shape(
        narrowed_by=frozenset(given),
        visibility=wanted.visibility,
        reads_all=reader_id is None,
        others_too=wanted.status is None or wanted.status in SHOWN_TO_OTHERS,
        sort=request.sort or DEFAULT_SORT,
        is_first=request.after is None,
    )
    place, last = request.after or (None, None)
    return _statement(shape), {**given, "reader": reader_id, "place": place, "last": last, "limit": request.limit + 1}


@lru_cache(maxsize=256)
def _statement(shape: _Shape) -> Select[Any]:
    branches = _branches(shape)
    conditions = [_CONDITIONS[name] for name in sorted(shape.narrowed_by)]
    ways = [way for branch in branches for way in _places(Image, shape, branch(Image), *conditions)]
    if "name" in shape.narrowed_by:
        few, are_many = names.few_of(Image, ("owner_id", "visibility", "status", *SORTABLE), conditions)
        ways = [way.where(are_many) for way in ways]
        ways += _places(few, shape, or_(*(branch(few) for branch in branches)), not_(are_many))
    if len(ways) > 1:  # an image may be of two branches, and is there once: its rows are alike
        places = union(*ways).subquery()
        page = _in_order(select(places), shape, places.c.place, places.c.id).subquery()
    else:
        page = ways[0].subquery()
    shown = select(*_SHOWN).join(page, col(Image.id) == page.c.id)
    return _in_order(shown, shape, page.c.place, page.c.id)


def _places(images: Any, shape: _Shape, *conditions: ColumnElement[bool]) -> list[Select[Any]]:
    """Ids and sort values of a page of one branch, after the place where the page before has ended."""
    name, down = shape.sort.lstrip("-"), shape.sort.startswith("-")
    place = getattr(images, name)
    query = select(images.id, place.label("place")).where(*conditions)
    value, last = bindparam("place", type_=place.type), bindparam("last", type_=Uuid)
    ranges: list[ColumnElement[bool]]
    if shape.is_first:
        ranges = [true()]
    elif name in _TIED:
        ranges = [and_(place == value, images.id < last if down else images.id > last)]
        ranges.append(place < value if down else place > value)
    else:
        here, seen = tuple_(place, images.id), tuple_(value, last)
        ranges = [here < seen if down else here > seen]
    return [_in_order(query.where(one), shape, place, images.id) for one in ranges]


def _in_order(query: Select[Any], shape: _Shape, *columns: Any) -> Select[Any]:
    order = [column.desc() if shape.sort.startswith("-") else column.asc() for column in columns]
    return query.order_by(*order).limit(bindparam("limit", type_=Integer))


_SHOWN = tuple(getattr(Image, name) for name in Image.model_fields if name != "provenance")
"""As columns: a page of them takes half the time that as many models take."""
_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "name": names.matches(col(Image.name)),
    "os_type": func.lower(col(Image.os_type)) == func.lower(bindparam("os_type", type_=Text)),
    **{name: getattr(Image, name) == bindparam(name) for name in ("architecture", "format", "status")},
}


def _branches(shape: _Shape) -> list[Branch]:
    """What may be read, without the parts that the filter excludes as a whole."""
    if shape.reads_all:
        return [_visible(visibility) for visibility in shape.visibilities]
    found = [_own(shape.visibility)]
    if shape.others_too:
        found += [_shown(visibility) for visibility in shape.visibilities if visibility is not Visibility.PRIVATE]
    return found


def _visible(visibility: Visibility) -> Branch:
    return lambda image: image.visibility == visibility.value


def _own(visibility: Visibility | None) -> Branch:
    def branch(image: Any) -> ColumnElement[bool]:
        own: ColumnElement[bool] = image.owner_id == bindparam("reader")
        return own if visibility is None else and_(own, image.visibility == visibility.value)

    return branch


def _shown(visibility: Visibility) -> Branch:
    """What others show: public images, or those shared with the reader."""

    def branch(image: Any) -> ColumnElement[bool]:
        shown = and_(image.visibility == visibility.value, image.status.in_(SHOWN_TO_OTHERS))
        if visibility is Visibility.PUBLIC:
            return shown
        listed = and_(col(Member.image_id) == image.id, col(Member.user_id) == bindparam("reader"))
        return and_(shown, select(Member).where(listed).exists())

    return branch
