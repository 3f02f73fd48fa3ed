import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from libs.common.batches import Batches, SharedLook


class Worker:
    """Notes its batches; each waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = asyncio.Event()

    async def work(self, items: Sequence[str]) -> Sequence[Exception | None]:
        self.batches.append(list(items))
        await self.go.wait()
        return [ValueError(item) if item.startswith("bad") else None for item in items]


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_comes_while_a_batch_is_under_way_goes_together_in_its_order() -> None:
    worker = Worker()
    batches = Batches(worker.work, most=3, patience_s=60)
    calls = [asyncio.create_task(batches.do("first"))]
    await turns()
    calls += [asyncio.create_task(batches.do(name)) for name in ("a", "b", "c", "d")]
    await turns()
    assert worker.batches == [["first"]]
    worker.go.set()
    await asyncio.gather(*calls)
    assert worker.batches == [["first"], ["a", "b", "c"], ["d"]]


async def test_what_was_asked_for_ends_before_a_close_does_though_its_callers_are_gone() -> None:
    worker = Worker()
    batches = Batches(worker.work, most=1, patience_s=60)
    calls = [asyncio.create_task(batches.do(name)) for name in ("first", "second", "third")]
    await turns()
    calls[0].cancel()
    closing = asyncio.create_task(batches.close())
    await turns()
    assert not closing.done()
    worker.go.set()
    await closing
    assert worker.batches == [["first"], ["second"], ["third"]]
    await asyncio.gather(*calls, return_exceptions=True)


async def test_a_close_waits_no_longer_than_it_is_told() -> None:
    worker = Worker()
    batches = Batches(worker.work)
    call = asyncio.create_task(batches.do("first"))
    await turns()
    await batches.close(grace_s=0.01)
    await asyncio.wait({call})
    assert call.cancelled()


async def test_each_call_is_told_its_own_fault() -> None:
    worker = Worker()
    worker.go.set()
    batches = Batches(worker.work)
    told = await asyncio.gather(*(batches.do(name) for name in ("bad", "good", "bad2")), return_exceptions=True)
    assert [str(fault) for fault in told] == ["bad", "None", "bad2"]
    assert worker.batches == [["bad", "good", "bad2"]]


async def test_a_slow_batch_holds_the_next_one_up_only_for_a_while(
    eventually: Callable[..., Awaitable[None]],
) -> None:
    worker = Worker()
    batches = Batches(worker.work, at_once=2, patience_s=0.01)
    calls = [asyncio.create_task(batches.do("slow"))]
    await turns()
    calls.append(asyncio.create_task(batches.do("next")))
    await eventually(lambda: len(worker.batches) == 2)
    calls.append(asyncio.create_task(batches.do("third")))
    await asyncio.sleep(0.05)
    assert worker.batches == [["slow"], ["next"]]
    worker.go.set()
    await asyncio.gather(*calls)
    assert worker.batches[2:] == [["third"]]


async def test_a_failure_of_the_work_itself_is_told_to_all_and_the_next_batch_goes_on() -> None:
    broken = True

    async def work(items: Sequence[str]) -> Sequence[Exception | None]:
        if broken:
            raise RuntimeError("broken")
        return [None for _ in items]

    batches = Batches(work)
    told = await asyncio.gather(*(batches.do(name) for name in "ab"), return_exceptions=True)
    assert [str(fault) for fault in told] == ["broken", "broken"]
    broken = False
    await batches.do("c")


async def test_a_call_given_up_before_its_batch_is_left_out_and_hurts_no_other() -> None:
    worker = Worker()
    batches = Batches(worker.work, patience_s=60)
    first = asyncio.create_task(batches.do("first"))
    await turns()
    given_up, other = asyncio.create_task(batches.do("given up")), asyncio.create_task(batches.do("other"))
    await turns()
    given_up.cancel()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    worker.go.set()
    await other
    assert worker.batches == [["first"], ["other"]]


async def test_a_look_under_way_is_not_shared_with_who_asks_later_but_the_next_one_is() -> None:
    looks: list[asyncio.Future[str]] = []

    async def look() -> str:
        looks.append(asyncio.get_running_loop().create_future())
        return await looks[-1]

    shared = SharedLook(look)
    first = asyncio.create_task(shared.now())
    await turns()
    later = [asyncio.create_task(shared.now()) for _ in range(3)]
    await turns()
    assert len(looks) == 1
    looks[0].set_result("then")
    await turns()
    assert (await first, len(looks)) == ("then", 2)
    looks[1].set_result("now")
    assert await asyncio.gather(*later) == ["now"] * 3


async def test_a_look_that_fails_fails_all_who_share_it() -> None:
    async def look() -> str:
        raise ValueError("dark")

    shared = SharedLook(look)
    told = await asyncio.gather(shared.now(), shared.now(), return_exceptions=True)
    assert [str(fault) for fault in told] == ["dark", "dark"]
