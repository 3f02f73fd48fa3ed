import asyncio

import pytest

from libs.common.db import drain


async def test_a_cancellation_that_meets_a_notification_is_not_lost() -> None:
    queue: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(drain(queue, 10.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    queue.put_nowait("news")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_all_that_is_there_is_taken_and_nothing_is_waited_for_too_long() -> None:
    queue: asyncio.Queue[str] = asyncio.Queue()
    for word in ("one", "two"):
        queue.put_nowait(word)
    assert await drain(queue, 10.0) == ["one", "two"]
    assert await drain(queue, 0.01) == []
