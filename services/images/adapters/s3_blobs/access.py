"""Access to the bucket: its failures in the service's words, reading by ranges."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import NamedTuple

import obstore
from obstore.store import S3Store

from libs.common.s3 import FAILURES, is_full
from services.images.errors import BlobStoreFull, BlobStoreUnavailable

READ_BYTES = 2 << 20
_IN_FLIGHT = 3


@contextlib.contextmanager
def s3_errors() -> Iterator[None]:
    """Tell what S3 says in the service's words."""
    try:
        yield
    except FAILURES as error:
        if is_full(error):
            raise BlobStoreFull("The bucket for images is full; nothing was kept", retry_after_s=60) from error
        raise BlobStoreUnavailable("The bucket for images does not answer", retry_after_s=10) from error


class Range(NamedTuple):
    """Bytes `start` to `end` (exclusive) of an object."""

    key: str
    start: int
    end: int

    def split(self) -> Iterator["Range"]:
        """The same in ranges of at most READ_BYTES."""
        for start in range(self.start, self.end, READ_BYTES):
            yield Range(self.key, start, min(self.end, start + READ_BYTES))


async def read_ranges(store: S3Store, ranges: Iterable[Range]) -> AsyncGenerator[bytes, None]:
    """The ranges' bytes in order, in pieces of at most READ_BYTES; the next few are on their way meanwhile.

    Raises BlobStoreUnavailable if an object is gone or shorter.
    """
    rest = (part for wanted in ranges for part in wanted.split())
    under_way: deque[asyncio.Task[bytes]] = deque()
    try:
        while True:
            while len(under_way) < _IN_FLIGHT and (part := next(rest, None)) is not None:
                under_way.append(asyncio.create_task(_fetch(store, part)))
            if not under_way:
                return
            piece = await under_way[0]
            under_way.popleft()
            yield piece
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _fetch(store: S3Store, part: Range) -> bytes:
    with s3_errors():
        found = (await obstore.get_range_async(store, part.key, start=part.start, end=part.end)).to_bytes()
    if len(found) != part.end - part.start:
        raise BlobStoreUnavailable("The file is shorter than its record says; tell an operator")
    return found
