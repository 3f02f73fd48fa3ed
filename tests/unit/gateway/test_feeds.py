import asyncio
import time
from typing import Any

import pytest

from gateway.feeds import Entry, Feed
from libs.common.auth import Principal, Revocations, Role

ADA = Principal("ada", "ada", Role.CLIENT, "s1", frozenset({"*"}), 0.0, 9e9)


def entry(number: int) -> Entry:
    return Entry(id=str(number), item=number, text=f'{{"n": {number}}}', name="tick")


def everything(_item: Any) -> bool:
    return True


async def take(feed: Feed, count: int, **options: Any) -> list[str]:
    """The first pieces of text that a reader gets."""
    revocations = options.pop("revocations", Revocations())
    stream = feed.stream(everything, principal=ADA, revocations=revocations, **options)
    async with asyncio.timeout(20):
        got = [await anext(stream) for _ in range(count)]
    await stream.aclose()
    return got


async def test_a_reader_gets_what_comes_after_it_came() -> None:
    feed = Feed(10)
    feed.publish(entry(1))
    stream = feed.stream(everything, principal=ADA, revocations=Revocations())
    assert (await anext(stream)).startswith(":")
    feed.publish(entry(2))
    assert await anext(stream) == 'id: 2\nevent: tick\ndata: {"n": 2}\n\n'
    await stream.aclose()


async def test_a_reader_resumes_after_the_last_id_it_saw() -> None:
    feed = Feed(10)
    for number in range(1, 6):
        feed.publish(entry(number))
    got = await take(feed, 3, last_id="3")
    assert [text.split("\n")[0] for text in got[1:]] == ["id: 4", "id: 5"]


async def test_an_id_that_is_no_longer_kept_gives_all_that_is() -> None:
    feed = Feed(2)
    for number in range(1, 6):
        feed.publish(entry(number))
    got = await take(feed, 3, last_id="1")
    assert [text.split("\n")[0] for text in got[1:]] == ["id: 4", "id: 5"]


async def test_a_filter_hides_what_is_not_the_readers() -> None:
    feed = Feed(10)
    stream = feed.stream(lambda item: item % 2 == 0, principal=ADA, revocations=Revocations())
    await anext(stream)
    for number in range(1, 5):
        feed.publish(entry(number))
    assert [(await anext(stream)).split("\n")[0] for _ in range(2)] == ["id: 2", "id: 4"]
    await stream.aclose()


async def test_a_slow_reader_is_told_what_it_lost_and_holds_nobody_up() -> None:
    feed = Feed(0)
    stream = feed.stream(everything, principal=ADA, revocations=Revocations())
    await anext(stream)
    for number in range(1500):
        feed.publish(entry(number))
    got = [await anext(stream) for _ in range(1001)]
    assert got[-1] == ": 500 lost, this connection is too slow\n\n"
    await stream.aclose()


async def test_a_revocation_ends_the_stream() -> None:
    revocations = Revocations(lambda: 1000.0)
    stream = Feed(10).stream(everything, principal=ADA, revocations=revocations)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    revocations.add("session", "s1", 1000.0)
    with pytest.raises(StopAsyncIteration):
        async with asyncio.timeout(20):
            await waiting


async def test_a_stream_that_does_not_follow_ends_with_what_is_kept() -> None:
    feed = Feed(10)
    feed.publish(entry(1))
    stream = feed.stream(everything, principal=ADA, revocations=Revocations(), history=True, follow=False)
    assert [text.split("\n")[0] async for text in stream][1:] == ["id: 1"]


async def test_what_comes_while_a_reader_resumes_comes_once() -> None:
    feed = Feed(10)
    for number in (1, 2):
        feed.publish(entry(number))
    stream = feed.stream(everything, principal=ADA, revocations=Revocations(), last_id="1")
    await anext(stream)
    feed.publish(entry(3))
    got = [await anext(stream) for _ in range(2)]
    feed.publish(entry(4))
    got.append(await anext(stream))
    assert [text.split("\n")[0] for text in got] == ["id: 2", "id: 3", "id: 4"]
    await stream.aclose()


@pytest.mark.parametrize("turns", range(3))
async def test_a_reader_who_is_refused_while_an_entry_is_on_its_way_does_not_get_it(turns: int) -> None:
    feed, revocations = Feed(10), Revocations()
    stream = feed.stream(everything, principal=ADA, revocations=revocations)
    await anext(stream)
    following = asyncio.ensure_future(anext(stream, None))
    await asyncio.sleep(0)
    feed.publish(entry(1))
    for _ in range(turns):
        await asyncio.sleep(0)
    assert not following.done()
    revocations.add("session", ADA.session_id, time.time())
    async with asyncio.timeout(5):
        assert await following is None
