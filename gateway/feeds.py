"""Live feeds to many clients: domain events and log lines, kept for a while so that a client can resume (SSE)."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import StreamingResponse

from libs.common.auth import Principal, Revocations

_HEARTBEAT_S = 15.0
_QUEUE_SIZE = 1000


@dataclass(slots=True, eq=False)
class _Reader:
    wants: Callable[[Any], bool]
    queue: asyncio.Queue["Entry"] = field(default_factory=lambda: asyncio.Queue(_QUEUE_SIZE))
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a feed under its id; `text` is what is sent, `item` what filters look at."""

    id: str
    item: Any
    text: str
    name: str


class Feed:
    """Fans items out to readers; a slow reader loses items and is told so, nobody waits for it."""

    def __init__(self, history: int) -> None:
        self._history: deque[Entry] = deque(maxlen=history)
        self._readers: set[_Reader] = set()

    def publish(self, entry: Entry) -> None:
        self._history.append(entry)
        for reader in self._readers:
            if reader.wants(entry.item):
                try:
                    reader.queue.put_nowait(entry)
                except asyncio.QueueFull:
                    reader.lost += 1

    async def stream(
        self,
        wants: Callable[[Any], bool],
        *,
        principal: Principal,
        revocations: Revocations,
        last_id: str | None = None,
        history: bool = False,
        follow: bool = True,
    ) -> AsyncIterator[str]:
        """SSE text: what came after `last_id` (or all that is kept, with `history`), then what comes.

        Ends when the caller's token is revoked or runs out; the client then comes back with a fresh one and its
        Last-Event-ID.
        """
        kept = self._after(last_id, everything=history)
        reader = _Reader(wants)
        self._readers.add(reader)
        refused = asyncio.ensure_future(revocations.wait_until_refused(principal))
        try:
            yield ": telar\n\n"
            for entry in kept:
                if wants(entry.item):
                    yield _sse(entry)
            while follow:
                text = await _next(reader, refused)
                if text is None or revocations.refuses(principal):
                    return
                yield text
        finally:
            refused.cancel()
            self._readers.discard(reader)

    def _after(self, last_id: str | None, *, everything: bool) -> list[Entry]:
        kept = list(self._history)
        if last_id is not None:
            for position, entry in enumerate(kept):
                if entry.id == last_id:
                    return kept[position + 1 :]
        return kept if everything or last_id is not None else []


async def _next(reader: _Reader, refused: "asyncio.Future[None]") -> str | None:
    """The next piece of text for a reader; None when its caller is refused from now on."""
    if reader.lost and reader.queue.empty():
        lost, reader.lost = reader.lost, 0
        return f": {lost} lost, this connection is too slow\n\n"
    waiting: asyncio.Future[Entry] = asyncio.ensure_future(reader.queue.get())
    try:
        both: set[asyncio.Future[Any]] = {waiting, refused}
        await asyncio.wait(both, timeout=_HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
        if refused.done():
            return None
        return _sse(waiting.result()) if waiting.done() else ": still here\n\n"
    finally:
        waiting.cancel()


def _sse(entry: Entry) -> str:
    lines = "".join(f"data: {line}\n" for line in entry.text.splitlines() or [""])
    return f"id: {entry.id}\nevent: {entry.name}\n{lines}\n"


def sse_response(stream: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(
        stream, media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
    )


def log_entry(line: bytes, entry_id: str) -> Entry | None:
    """A log line as an entry of the feed; None if it cannot be read."""
    try:
        item = json.loads(line)
    except ValueError:
        return None
    return Entry(id=entry_id, item=item, text=line.decode(errors="replace"), name="log")
