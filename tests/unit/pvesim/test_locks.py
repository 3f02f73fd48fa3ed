import asyncio

import pytest

from libs.pvesim.clock import LabClock
from libs.pvesim.errors import PveError
from libs.pvesim.locks import Locks

SCALE = 0.005


@pytest.fixture
def locks() -> Locks:
    return Locks(LabClock(SCALE))


async def test_shared_holders_meet_and_an_exclusive_one_waits_for_them(locks: Locks) -> None:
    order: list[str] = []

    async def exclusive() -> None:
        async with locks.guest("sv1", 100):
            order.append("exclusive")

    async with locks.guest("sv1", 100, shared=True), locks.guest("sv1", 100, shared=True):
        waiting = asyncio.create_task(exclusive())
        await asyncio.sleep(0)
        order.append("shared")
    await waiting
    assert order == ["shared", "exclusive"]


async def test_waiting_ends_with_the_path_in_the_text_and_leaves_the_lock_usable(locks: Locks) -> None:
    async with locks.guest("sv1", 100):
        with pytest.raises(PveError, match=r"can't lock file '/var/lock/qemu-server/lock-100\.conf' - got timeout"):
            async with locks.guest("sv1", 100, wait_s=1):
                pass
        async with locks.guest("sv2", 100):
            pass
    async with locks.guest("sv1", 100, wait_s=0):
        pass


async def test_a_cancelled_waiter_does_not_keep_others_waiting(locks: Locks) -> None:
    async def wait(shared: bool) -> None:
        async with locks.guest("sv1", 100, shared=shared):
            pass

    async with locks.guest("sv1", 100, shared=True):
        first = asyncio.create_task(wait(shared=False))
        second = asyncio.create_task(wait(shared=True))
        await asyncio.sleep(0)
        first.cancel()
        await second
    await asyncio.wait({first})
    assert first.cancelled()


async def test_storage_turns_follow_each_other_until_the_wait_grows_too_long(locks: Locks) -> None:
    ended = await asyncio.gather(*(locks.storage_turn("", "shared", 4) for _ in range(5)), return_exceptions=True)
    assert [isinstance(end, PveError) for end in ended] == [False, False, False, True, True]
