import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from uuid import UUID

import pytest
from starlette.requests import ClientDisconnect

from services.images.api.tus import CHUNK_BYTES, chunks_of
from services.images.errors import UploadInterrupted, UploadTakenOver
from services.images.service.appending import Turn, Turns

Eventually = Callable[..., Awaitable[None]]
UPLOAD = UUID(int=1)
PIECE = bytes(65_536)


async def all_of(chunks: AsyncGenerator[bytearray, None]) -> tuple[list[int], str]:
    """The lengths of the chunks that come, and the words of the interruption that ends them."""
    lengths = []
    try:
        async for chunk in chunks:
            lengths.append(len(chunk))  # noqa: PERF401 - those before the interruption count
    except UploadInterrupted as error:
        return lengths, error.detail
    return lengths, ""


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_pieces_are_gathered_into_chunks() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(2 * CHUNK_BYTES // len(PIECE)):
            yield PIECE
        yield b"the end"
        yield b""

    assert await all_of(chunks_of(pieces(), idle_s=5)) == ([CHUNK_BYTES, CHUNK_BYTES, 7], "")


async def test_what_comes_slowly_is_not_held_back_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.images.api.tus._FLUSH_S", 0.0)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x"

    assert await all_of(chunks_of(pieces(), idle_s=5)) == ([1, 1, 1], "")


async def test_all_that_arrived_is_given_before_the_interruption_is_told() -> None:
    async def gone() -> AsyncIterator[bytes]:
        yield PIECE
        raise ClientDisconnect

    async def silent() -> AsyncIterator[bytes]:
        yield PIECE
        await forever()

    lengths, reason = await all_of(chunks_of(gone(), idle_s=5))
    assert (lengths, "The connection ended" in reason) == ([len(PIECE)], True)
    lengths, reason = await all_of(chunks_of(silent(), idle_s=0.01))
    assert (lengths, "Nothing came" in reason) == ([len(PIECE)], True)


async def test_time_that_we_take_is_not_the_clients_silence() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(CHUNK_BYTES)
        yield b"x"

    lengths = []
    async for chunk in chunks_of(pieces(), idle_s=0.02):
        lengths.append(len(chunk))
        await asyncio.sleep(0.06)  # a slow disk
    assert lengths == [CHUNK_BYTES, 1]


async def test_a_turn_that_is_over_ends_where_it_waits_for_its_client() -> None:
    async def silent() -> AsyncGenerator[bytearray, None]:
        await forever()
        yield bytearray()

    turn = Turn()
    waiting = asyncio.create_task(turn.next_of(silent()))
    await asyncio.sleep(0)
    turn.stop()
    turn.stop()
    with pytest.raises(UploadTakenOver):
        await waiting
    with pytest.raises(UploadTakenOver):
        await turn.next_of(silent())


async def test_the_newest_of_many_has_its_turn_when_all_before_it_have_ended(eventually: Eventually) -> None:
    turns, under_way, most, begun, refused = Turns(), 0, 0, [], []

    async def write(number: int) -> None:
        nonlocal under_way, most
        async with turns.take(UPLOAD) as turn:
            try:
                turn.check()
                under_way += 1
                most = max(most, under_way)
                begun.append(number)
                await eventually(lambda: turn._is_over or number == 4)
                await asyncio.sleep(0)  # what is stored meanwhile
                under_way -= 1
                turn.check()
            except UploadTakenOver:
                refused.append(number)

    await asyncio.gather(*(write(number) for number in range(5)))
    assert begun[0] == 0
    assert begun[-1] == 4
    assert refused == [0, 1, 2, 3]
    assert (most, under_way, turns._turns) == (1, 0, {})
