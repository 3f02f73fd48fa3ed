"""The statements of running operations, built once: building one anew costs more than running it."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnClause,
    ColumnElement,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    column,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.operations.model import Json, Operation, State
from libs.common.operations.table import CHANNEL, operations_table

_t = operations_table.c
_FREE: Json = {"lease_holder": None, "lease_until": None}
_STORED = ("direction", "step", "progress", "message", "error", "memo", "steps", "back_to")
_GIVEN = ("id", "kind", "resource_type", "resource_id", "owner_id", "input", "traceparent")


def seconds(count: Any) -> ColumnElement[Any]:
    """An interval of so many seconds, counted by the database's clock alone: replicas' clocks need not agree."""
    return func.make_interval(0, 0, 0, 0, 0, 0, count)


def _claim() -> Any:
    other = operations_table.alias("other")
    in_its_way = (
        select(literal(1))
        .where(
            other.c.resource_type == _t.resource_type,
            other.c.resource_id == _t.resource_id,
            other.c.id != _t.id,
            or_(
                other.c.state == State.RUNNING,
                and_(
                    other.c.state == State.PENDING,
                    tuple_(other.c.created_at, other.c.id) < tuple_(_t.created_at, _t.id),
                ),
            ),
        )
        .exists()
    )
    due = (
        select(_t.id)
        .where(
            _t.state.in_((State.PENDING, State.RUNNING)),
            _t.run_at <= func.now(),
            or_(_t.lease_until.is_(None), _t.lease_until < func.now()),
            _t.kind.in_(bindparam("kinds", expanding=True)),
            or_(_t.state == State.RUNNING, ~in_its_way),
        )
        .order_by(_t.run_at, _t.id)
        .limit(bindparam("most"))
        .with_for_update(skip_locked=True, of=operations_table)
        .cte("due")  # evaluated once: in a plain subquery the planner may lock more rows than the limit
    )
    return (
        update(operations_table)
        .where(_t.id.in_(select(due.c.id)))
        .values(
            state=State.RUNNING,
            lease_holder=bindparam("holder", type_=_t.lease_holder.type),
            lease_until=func.now() + seconds(bindparam("lease_s")),
            attempts=_t.attempts + 1,
            updated_at=func.now(),
        )
        .returning(operations_table)
    )


def _given(name: str, columns: Sequence[ColumnClause[Any]]) -> Any:
    """Rows that are given as one JSON array of objects."""
    rows = func.jsonb_to_recordset(bindparam("given", type_=JSONB))
    return rows.table_valued(*columns, name=name).render_derived(with_types=True)


def _as_it_is(given: Any) -> Update:
    """Store where operations are, if their leases are still held."""
    return (
        update(operations_table)
        .where(_t.id == given.c.id, _t.lease_holder == given.c.lease_holder)
        .values({name: given.c[name] for name in _STORED} | {"updated_at": func.now()})
    )


def _states() -> Any:
    return _given("state", [column(name, _t[name].type) for name in ("id", "lease_holder", "state", *_STORED)])


def _announced(change: Update) -> Select[Any]:
    changed = change.returning(_t.id, _t.cancel_requested).cte("changed")
    return select(changed.c.id, changed.c.cancel_requested, func.pg_notify(CHANNEL, changed.c.id))


def _in_order(ids: ColumnElement[Any]) -> ColumnElement[bool]:
    """Lock several operations one after the other: two statements that each lock some never wait for each other."""
    locked = select(_t.id).where(ids).order_by(_t.id).with_for_update().cte("locked")
    return _t.id.in_(select(locked.c.id))


def _write() -> Select[Any]:
    given = _states()
    return _announced(_as_it_is(given).where(_in_order(_t.id.in_(select(given.c.id)))))


def _postpone() -> Select[Any]:
    at = case((_t.cancel_requested, func.now()), else_=func.now() + seconds(bindparam("delay_s")))
    return _announced(_as_it_is(_states()).values(run_at=at, **_FREE))


def _finish(*, unless_cancelled: bool) -> Select[Any]:
    given = _states()
    ending = _as_it_is(given).values(state=given.c.state, finished_at=func.now(), **_FREE)
    return _announced(ending.where(~_t.cancel_requested) if unless_cancelled else ending)


def _renew() -> Any:
    given = _given("held", [column("id", Text), column("lease_holder", Text)])
    return (
        update(operations_table)
        .where(_t.id == given.c.id, _t.lease_holder == given.c.lease_holder, _in_order(_t.id.in_(select(given.c.id))))
        .values(lease_until=func.now() + seconds(bindparam("lease_s")))
        .returning(_t.id, _t.cancel_requested)
    )


def _enqueue() -> Select[Any]:
    given = _given("wanted", [column(name, _t[name].type) for name in _GIVEN])
    adding = insert(operations_table).from_select(_GIVEN, select(*(given.c[name] for name in _GIVEN)))
    added = adding.returning(operations_table).cte("added")
    return select(added, func.pg_notify(CHANNEL, "").label("told"))


CLAIM = _claim()
"""Given `holder`, `lease_s`, `kinds` and how many at `most`: the operations taken."""
WRITE = _write()
"""Given some `as_it_is`: those stored, each with whether its cancellation is wanted; not one whose lease is lost.

So are the next three, of one operation.
"""
POSTPONE = _postpone()
"""Given `delay_s`, too."""
FINISH = _finish(unless_cancelled=False)
SUCCEED = _finish(unless_cancelled=True)
"""Nothing also if a cancellation came first."""
RENEW = _renew()
"""Given leases' ids and holders, and `lease_s`: those still held, each with whether its cancellation is wanted."""
ENQUEUE = _enqueue()
"""Given the columns of new operations: the operations."""


def as_it_is(operation: Operation) -> Json:
    """What stands for an operation as it is in memory."""
    stored: Json = {name: getattr(operation, name) for name in ("id", "lease_holder", "state", *_STORED)}
    return stored | {"steps": [record.to_json() for record in operation.steps]}
