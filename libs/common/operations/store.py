"""The runner's side of the operations table: claims under a lease, and writes that only the lease's holder can make.

Every method is one statement in a transaction of its own, except `finish`, which is a unit of work; writes that meet
share theirs.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from libs.common.batches import Batches
from libs.common.db import database_errors
from libs.common.operations.errors import LeaseLost
from libs.common.operations.model import Json, Operation, State
from libs.common.operations.saga import OnEnd
from libs.common.operations.statements import CLAIM, FINISH, POSTPONE, RENEW, SUCCEED, WRITE, as_it_is
from libs.common.operations.table import CHANNEL, operations_table
from libs.common.uow import UnitOfWorkFactory

CLAIM_TRIES = 5

_t = operations_table.c
_FREE: Mapping[str, Any] = {"lease_holder": None, "lease_until": None}


@dataclass(eq=False, slots=True)
class _Write:
    state: Json
    stored: bool = False
    cancel_requested: bool = False


class OperationStore:
    """Claims and fenced writes over one service's operations table."""

    def __init__(self, uow: UnitOfWorkFactory, *, lease_s: float) -> None:
        self._uow = uow
        self._engine = uow.database.standalone
        self._lease_s = lease_s
        self._writes = Batches(self._write_all)

    async def close(self) -> None:
        """Let writes end whose callers are gone."""
        await self._writes.close()

    async def claim(self, holder: str, kinds: Iterable[str], limit: int) -> list[Operation]:
        """Take up to `limit` operations that are due and free: pending ones, and running ones without a live lease.

        A pending one is not taken while another of its resource runs or an older one of it waits.
        """
        wanted = {"holder": holder, "lease_s": self._lease_s, "kinds": list(kinds), "most": limit}
        with database_errors():
            async with self._engine.connect() as connection:
                for _ in range(CLAIM_TRIES):
                    with contextlib.suppress(IntegrityError):  # two runners met at one resource, the index let one pass
                        rows = (await connection.execute(CLAIM, wanted)).mappings().all()
                        return sorted((Operation.from_row(row) for row in rows), key=lambda operation: operation.id)
        return []

    async def renew(self, held: Sequence[tuple[str, str]]) -> dict[str, bool]:
        """Prolong leases given as (id, holder): the ids still held, each with whether its cancellation is wanted."""
        leases = [{"id": name, "lease_holder": holder} for name, holder in held]
        with database_errors():
            async with self._engine.connect() as connection:
                rows = await connection.execute(RENEW, {"given": leases, "lease_s": self._lease_s})
                return {row.id: row.cancel_requested for row in rows}

    async def write(self, operation: Operation) -> bool:
        """Store where the operation is; gives whether its cancellation is wanted. Raises LeaseLost.

        Those that are to be written at the same time are written together.
        """
        writing = _Write(as_it_is(operation))
        await self._writes.do(writing)
        if not writing.stored:
            raise LeaseLost(operation.id)
        return writing.cancel_requested

    async def postpone(self, operation: Operation, delay_s: float) -> None:
        """Store where the operation is and let go of it for `delay_s`, or at once if it is to be cancelled."""
        given = {"given": [as_it_is(operation)], "delay_s": delay_s}
        with database_errors():
            async with self._engine.connect() as connection:
                stored = (await connection.execute(POSTPONE, given)).first()
        if stored is None:
            raise LeaseLost(operation.id)

    async def release(self, held: tuple[str, str]) -> None:
        """Let go of an operation (id, holder) so that any runner may go on with it at once."""
        freeing = update(operations_table).where(tuple_(_t.id, _t.lease_holder) == held).values(_FREE)
        freed = freeing.returning(_t.id).cte("freed")
        with database_errors():
            async with self._engine.connect() as connection:
                await connection.execute(select(func.pg_notify(CHANNEL, "")).select_from(freed))

    async def finish(self, operation: Operation, on_end: OnEnd | None) -> bool:
        """Store a final state together with what `on_end` does. Raises LeaseLost, and whatever `on_end` raises.

        False if a cancellation came before the success, which then is not stored.
        """
        ending = SUCCEED if operation.state is State.SUCCEEDED else FINISH
        async with self._uow() as uow:
            with database_errors():
                connection = await uow.session.connection()
                ended = (await connection.execute(ending, {"given": [as_it_is(operation)]})).first()
                if ended is None:
                    holder = await connection.scalar(select(_t.lease_holder).where(_t.id == operation.id))
                    if holder != operation.lease_holder:
                        raise LeaseLost(operation.id)
                    return False
                if on_end is not None:
                    await on_end(uow, operation)
                await uow.commit()
        return True

    async def _write_all(self, writes: Sequence[_Write]) -> Sequence[Exception | None]:
        given = {"given": [writing.state for writing in writes]}
        with database_errors():
            async with self._engine.connect() as connection:
                stored = {row.id: row.cancel_requested for row in await connection.execute(WRITE, given)}
        for writing in writes:
            writing.stored = writing.state["id"] in stored
            writing.cancel_requested = stored.get(writing.state["id"], False)
        return [None] * len(writes)
