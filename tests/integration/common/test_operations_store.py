"""The operations table under many writers: what meets goes together, and each is told its own outcome."""

import asyncio
from typing import Any

from sqlalchemy import event

from libs.common.operations import LeaseLost, Wanted, enqueue_all
from libs.common.operations.model import Operation, State
from libs.common.operations.store import OperationStore
from tests.integration.common.operations_lab import Lab

COUNT = 30


async def claimed(lab: Lab, store: OperationStore) -> list[Operation]:
    async with lab.uow() as uow:
        wanted = [Wanted("write", "vm", f"vm-{number}", "ada", {"number": number}) for number in range(COUNT)]
        added = await enqueue_all(uow, wanted)
        await uow.commit()
    assert [operation.input["number"] for operation in added] == list(range(COUNT))
    assert {(operation.state, operation.owner_id, operation.error) for operation in added} == {
        (State.PENDING, "ada", None)
    }
    taken = await store.claim("me", ["write"], COUNT)
    assert [operation.id for operation in taken] == [operation.id for operation in added]
    return taken


async def test_writes_that_meet_share_a_statement_and_each_is_told_its_own_outcome(lab: Lab) -> None:
    store = OperationStore(lab.uow, lease_s=30)
    taken = await claimed(lab, store)
    lost, unwanted = taken[3], taken[5]
    await lab.sql("UPDATE operations SET lease_holder = 'another' WHERE id = :id", id=lost.id)
    await lab.sql("UPDATE operations SET cancel_requested = true WHERE id = :id", id=unwanted.id)
    statements: list[str] = []
    event.listen(
        lab.database.engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(str(given[2]))
    )
    for number, operation in enumerate(taken):
        operation.step, operation.message, operation.memo = "clone", f'"{number}"', {"collisions": number}
    outcomes: list[Any] = await asyncio.gather(*(store.write(one) for one in taken), return_exceptions=True)
    assert len(statements) <= 3
    assert [type(outcome) for outcome in outcomes if outcome not in (True, False)] == [LeaseLost]
    assert [number for number, outcome in enumerate(outcomes) if outcome is True] == [5]
    for number, operation in enumerate(taken):
        stored = await lab.get(operation.id)
        written = ("clone", f'"{number}"', {"collisions": number}, None)
        told = (stored.step, stored.message, stored.memo, stored.error)
        assert told == ((None, "", {}, None) if operation is lost else written)


async def test_writes_and_renewals_of_many_leases_never_wait_for_each_other_in_a_circle(lab: Lab) -> None:
    store = OperationStore(lab.uow, lease_s=30)
    taken = await claimed(lab, store)
    held = [(operation.id, "me") for operation in taken]

    async def write(operations: list[Operation]) -> None:
        for _ in range(10):
            await asyncio.gather(*(store.write(operation) for operation in operations))

    async def renew(leases: list[tuple[str, str]]) -> None:
        for _ in range(20):
            assert len(await store.renew(leases)) == COUNT

    await asyncio.gather(write(taken), write(taken[::-1]), renew(held), renew(held[::-1]))
