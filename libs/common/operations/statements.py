"""The statements of running operations, built once: building one anew costs more than running it."""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Update,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from libs.common.operations.model import Json, Operation, State
from libs.common.operations.table import CHANNEL, operations_table

_t = operations_table.c
_FREE: Json = {"lease_holder": None, "lease_until": None}
_STORED = ("direction", "step", "progress", "message", "error", "memo", "steps", "back_to")
_GIVEN = ("id", "kind", "resource_type", "resource_id", "owner_id", "input", "traceparent")


def seconds(count: Any) -> ColumnElement[Any]:
    """An interval of so many seconds, counted by the database's clock alone: replicas' clocks need not agree."""
    return func.make_interval(0, 0, 0, 0, 0, 0, count)


def _new(*names: str) -> dict[str, Any]:
    """Parameters for columns' new values; their names may not be the columns' own."""
    return {name: bindparam(f"new_{name}", type_=_t[name].type) for name in names}


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


def _as_it_is() -> Update:
    """Store where an operation is, if its lease is still held."""
    return (
        update(operations_table)
        .where(_t.id == bindparam("of_id"), _t.lease_holder == bindparam("of_holder"))
        .values(**_new(*_STORED), updated_at=func.now())
    )


def _announced(change: Update) -> Select[Any]:
    changed = change.returning(_t.id, _t.cancel_requested).cte("changed")
    return select(changed.c.cancel_requested, func.pg_notify(CHANNEL, changed.c.id))


def _postpone() -> Select[Any]:
    at = case((_t.cancel_requested, func.now()), else_=func.now() + seconds(bindparam("delay_s")))
    return _announced(_as_it_is().values(run_at=at, **_FREE))


def _finish(*, unless_cancelled: bool) -> Select[Any]:
    ending = _as_it_is().values(**_new("state"), finished_at=func.now(), **_FREE)
    return _announced(ending.where(~_t.cancel_requested) if unless_cancelled else ending)


def _enqueue() -> Select[Any]:
    added = insert(operations_table).values(**_new(*_GIVEN)).returning(operations_table).cte("added")
    return select(added, func.pg_notify(CHANNEL, "").label("told"))


CLAIM = _claim()
"""Given `holder`, `lease_s`, `kinds` and how many at `most`: the operations taken."""
WRITE = _announced(_as_it_is())
"""Given `as_it_is`: whether a cancellation is wanted, or nothing if the lease is lost. So are the next three."""
POSTPONE = _postpone()
"""Given `delay_s`, too."""
FINISH = _finish(unless_cancelled=False)
"""Given `new_state`, too."""
SUCCEED = _finish(unless_cancelled=True)
"""Nothing also if a cancellation came first."""
ENQUEUE = _enqueue()
"""Given `enqueued`: the operation."""


def as_it_is(operation: Operation) -> Json:
    """The parameters that stand for an operation as it is in memory."""
    stored: Json = {f"new_{name}": getattr(operation, name) for name in _STORED}
    stored["new_steps"] = [record.to_json() for record in operation.steps]
    return stored | {"of_id": operation.id, "of_holder": operation.lease_holder}


def enqueued(**given: Any) -> Json:
    """The parameters of a new operation: one for each column that is given."""
    return {f"new_{name}": given[name] for name in _GIVEN}
