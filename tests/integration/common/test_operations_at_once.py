"""Kinds of which only so many run at once: the others wait as pending, and nothing else waits for them."""

import asyncio

from libs.common.operations import Saga, State, Step, StepContext
from tests.integration.common.operations_lab import Eventually, Lab


async def test_a_bound_kind_runs_so_many_at_a_time_and_keeps_no_other_waiting(lab: Lab, eventually: Eventually) -> None:
    door, inside, most = asyncio.Event(), 0, 0

    async def heavy(_context: StepContext) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await door.wait()
        inside -= 1

    async def light(_context: StepContext) -> None: ...

    sagas = (
        Saga("vm.heavy", (Step("heavy", heavy),), at_once=2),
        Saga("vm.light", (Step("light", light),)),
    )
    await lab.runner(*sagas, concurrency=4)
    ids = [await lab.enqueue("vm.heavy") for _ in range(8)]
    await eventually(lambda: inside == 2)
    quick = await lab.enqueue("vm.light")

    async def light_has_ended() -> bool:
        return (await lab.get(quick)).state is State.SUCCEEDED

    await eventually(light_has_ended)
    states = [(await lab.get(one)).state for one in ids]
    assert (states.count(State.RUNNING), states.count(State.PENDING)) == (2, 6)
    door.set()

    async def all_have_ended() -> bool:
        return all([(await lab.get(one)).state is State.SUCCEEDED for one in ids])

    await eventually(all_have_ended)
    assert most == 2


async def test_two_runners_hold_the_bound_each(lab: Lab, eventually: Eventually) -> None:
    door, inside = asyncio.Event(), 0

    async def heavy(_context: StepContext) -> None:
        nonlocal inside
        inside += 1
        await door.wait()

    saga = Saga("vm.heavy", (Step("heavy", heavy),), at_once=1)
    for _ in range(2):
        await lab.runner(saga)
    for _ in range(4):
        await lab.enqueue("vm.heavy")
    await eventually(lambda: inside == 2)
    running = await lab.sql("SELECT count(*) AS found FROM operations WHERE state = 'running'")
    assert running[0].found == 2
    door.set()
    await eventually(lambda: inside == 4)
