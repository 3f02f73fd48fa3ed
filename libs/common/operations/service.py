"""What people do with operations: start one with the resource it works on, look, list, cancel, resume."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import func, select, text, update

from libs.common.db import database_errors
from libs.common.ids import new_operation_id
from libs.common.operations.errors import OperationNotCancellable, OperationNotFound, OperationNotResumable
from libs.common.operations.model import Direction, Operation, State, StepState
from libs.common.operations.saga import Saga
from libs.common.operations.statements import ENQUEUE
from libs.common.operations.table import CANCEL, announce, operations_table
from libs.common.pagination import PageRequest, keyset
from libs.common.telemetry import current_traceparent
from libs.common.uow import UnitOfWork, UnitOfWorkFactory

RETENTION = "90 days"
_NOW = func.now()
_t = operations_table.c


@dataclass(frozen=True, slots=True)
class Wanted:
    """An operation that shall be."""

    kind: str
    resource_type: str
    resource_id: str
    owner_id: str
    input: Mapping[str, Any]
    traceparent: str | None = field(default_factory=current_traceparent)


async def enqueue(
    uow: UnitOfWork,
    *,
    kind: str,
    resource_type: str,
    resource_id: str,
    owner_id: str,
    input: Mapping[str, Any],  # noqa: A002 - the field's own name
) -> Operation:
    """Add an operation to the unit of work: it exists, and a runner wakes, when the unit commits."""
    return (await enqueue_all(uow, [Wanted(kind, resource_type, resource_id, owner_id, input)]))[0]


async def enqueue_all(uow: UnitOfWork, wanted: Sequence[Wanted]) -> list[Operation]:
    """Add operations to the unit of work, in one go and in their order."""
    service = uow.source.rpartition("/")[2]
    given = [{"id": new_operation_id(service), **asdict(one)} for one in wanted]
    connection = await uow.session.connection()
    rows = (await connection.execute(ENQUEUE, {"given": given})).mappings()
    return sorted((Operation.from_row(row) for row in rows), key=lambda operation: operation.id)


class Operations:
    """The operations of one service; `sagas` tell which kinds can be cancelled and what their end means."""

    def __init__(self, uow: UnitOfWorkFactory, sagas: Sequence[Saga]) -> None:
        self._uow = uow
        self._sagas = {saga.kind: saga for saga in sagas}

    async def get(self, operation_id: str, *, owner_id: str | None = None) -> Operation:
        """Look at one; with `owner_id` only if it is that owner's. Raises OperationNotFound."""
        async with self._uow() as uow:
            return await self._load(uow, operation_id, owner_id)

    async def find(
        self,
        request: PageRequest,
        *,
        owner_id: str | None = None,
        kind: str | None = None,
        state: State | None = None,
        resource: str | None = None,
    ) -> list[Operation]:
        """List operations, newest first unless asked otherwise, one more than the page holds (see `pagination.page`).

        `resource` is `<type>/<id>`, or an id alone.
        """
        query = select(operations_table)
        resource_type, _, resource_id = (resource or "").rpartition("/")
        wanted = {"owner_id": owner_id, "kind": kind, "state": state}
        wanted |= {"resource_type": resource_type or None, "resource_id": resource_id or None}
        for column, value in wanted.items():
            if value is not None:
                query = query.where(_t[column] == value)
        # Ids begin with the time they were made, so that one column is both the order and the key.
        query = keyset(query, request, columns={"created_at": _t.id}, key=_t.id, default="-created_at")
        with database_errors():
            async with self._uow() as uow:
                rows = (await (await uow.session.connection()).execute(query)).mappings().all()
        return [self._complete(Operation.from_row(row)) for row in rows]

    async def cancel(self, operation_id: str, *, owner_id: str | None = None) -> Operation:
        """End an operation that has not begun as cancelled, or ask one under way to turn back (it goes on until then).

        Raises OperationNotFound, or OperationNotCancellable with the reason.
        """
        async with self._uow() as uow:
            operation = await self._load(uow, operation_id, owner_id, lock=True)
            if operation.state is State.CANCELLED or operation.cancel_requested:
                return operation
            untouched = operation.state is State.PENDING and operation.direction is Direction.FORWARD
            if not untouched:
                self._check_cancellable(operation)
                operation.cancel_requested = True
                await self._change(uow, operation, {"cancel_requested": True, "run_at": _NOW}, CANCEL + operation.id)
            else:
                operation.state, operation.message = State.CANCELLED, "Cancelled before it began"
                final = {"state": State.CANCELLED, "message": operation.message, "finished_at": _NOW}
                await self._change(uow, operation, final)
                saga = self._sagas.get(operation.kind)
                if saga is not None and saga.on_end is not None:
                    await saga.on_end(uow, operation)
            await uow.commit()
        return operation

    async def resume(self, operation_id: str) -> Operation:
        """Go on undoing what needed an operator; raises OperationNotFound or OperationNotResumable."""
        async with self._uow() as uow:
            operation = await self._load(uow, operation_id, None, lock=True)
            if operation.state is not State.NEEDS_OPERATOR:
                raise OperationNotResumable(f"It is {operation.state}, not {State.NEEDS_OPERATOR}")
            for record in operation.steps:
                if record.state is StepState.UNDOING:
                    record.attempts = 0
            # Pending, not running: another operation of the resource may run just now.
            operation.state, operation.message = State.PENDING, "Resumed by an administrator"
            steps = [record.to_json() for record in operation.steps]
            again = {"state": State.PENDING, "message": operation.message, "steps": steps}
            await self._change(uow, operation, again | {"run_at": _NOW, "finished_at": None})
            await uow.commit()
        return operation

    async def sweep(self) -> None:
        """Forget operations that ended longer ago than the retention; those that need an operator stay."""
        async with self._uow() as uow:
            old = text(f"finished_at < now() - interval '{RETENTION}'")
            connection = await uow.session.connection()
            await connection.execute(operations_table.delete().where(old, _t.state != State.NEEDS_OPERATOR))
            await uow.commit()

    def _check_cancellable(self, operation: Operation) -> None:
        saga = self._sagas.get(operation.kind)
        if operation.state.is_final:
            raise OperationNotCancellable(f"It has ended: {operation.state}")
        if saga is None or not saga.cancellable:
            raise OperationNotCancellable(f"Operations of the kind {operation.kind} run to their end once begun")
        if operation.direction is Direction.BACKWARD and operation.back_to is None:
            raise OperationNotCancellable("It has failed and is being undone already")

    async def _load(self, uow: UnitOfWork, operation_id: str, owner_id: str | None, *, lock: bool = False) -> Operation:
        query = select(operations_table).where(_t.id == operation_id)
        if owner_id is not None:
            query = query.where(_t.owner_id == owner_id)
        with database_errors():
            connection = await uow.session.connection()
            row = (await connection.execute(query.with_for_update() if lock else query)).mappings().one_or_none()
        if row is None:
            raise OperationNotFound(f"There is no operation {operation_id}, or it is not yours")
        return self._complete(Operation.from_row(row))

    async def _change(self, uow: UnitOfWork, operation: Operation, values: Mapping[str, Any], *news: str) -> None:
        """Store values and announce them, to runners (there may be something to claim now) and to streams."""
        connection = await uow.session.connection()
        await connection.execute(
            update(operations_table).where(_t.id == operation.id).values(updated_at=_NOW, **values)
        )
        for payload in ("", operation.id, *news):
            await connection.execute(announce(payload))

    def _complete(self, operation: Operation) -> Operation:
        """Show the steps of an operation that has not begun, too."""
        saga = self._sagas.get(operation.kind)
        if saga is not None and not operation.steps:
            operation.steps = saga.records(())
        return operation
