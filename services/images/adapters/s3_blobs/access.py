"""Access to the bucket: whose it is, how it is reached, its failures in the service's words, reading by ranges."""

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store
from pydantic import SecretStr

from services.images.errors import BlobStoreFull, BlobStoreUnavailable

READ_BYTES = 2 << 20
_IN_FLIGHT = 3
_FULL = re.compile(r"<Code>\w*(?:StorageFull|QuotaExceeded|InsufficientStorage)\w*</Code>|507 Insufficient Storage")
_Failure = (BaseError, OSError)  # obstore raises OSError itself for missing objects and from its writers


@dataclass(frozen=True, slots=True)
class S3Account:
    """A bucket and who may use it; without keys they are found as AWS's own tools find them (environment, role).

    `endpoint` is None for AWS itself; `link_endpoint` is the address under which clients reach the same server, None
    where it is the same.
    """

    bucket: str
    prefix: str
    region: str
    endpoint: str | None = None
    link_endpoint: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    allow_http: bool = False

    def url(self, key: str | None, *, for_clients: bool = False) -> str:
        """The address of an object (path style), or of the bucket itself for None."""
        endpoint = (self.link_endpoint if for_clients else None) or self.endpoint
        root = f"{(endpoint or f'https://s3.{self.region}.amazonaws.com').rstrip('/')}/{self.bucket}"
        return root if key is None else f"{root}/{self.full_key(key)}"

    def full_key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key


def connect(account: S3Account) -> S3Store:
    """A client of the bucket, with connections of its own; opens none yet."""
    secret = account.secret_access_key
    keys = {} if secret is None else {"secret_access_key": secret.get_secret_value()}
    if account.access_key_id is not None:
        keys["access_key_id"] = account.access_key_id
    if account.endpoint is not None:
        keys["endpoint"] = account.endpoint
    return S3Store(
        account.bucket,
        prefix=account.prefix or None,
        region=account.region,
        client_options={
            "allow_http": account.allow_http,
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=120),  # of one request, which never moves more than a part
        },
        retry_config={
            "max_retries": 4,
            "retry_timeout": timedelta(seconds=60),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
        },
        **keys,  # type: ignore[arg-type]  # each is an option of its own
    )


@contextlib.contextmanager
def s3_errors() -> Iterator[None]:
    """Tell what S3 says in the service's words."""
    try:
        yield
    except _Failure as error:
        if _FULL.search(str(error)):
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
