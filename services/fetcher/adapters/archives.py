"""ZIP and tar archives as streams: each file passes through once, and memory does not grow with their number."""

import struct
import tarfile
import tempfile
import time
import zlib
from collections.abc import AsyncIterator
from typing import IO, NamedTuple

from services.fetcher.ports import StoredFile

_SPOOLED_BYTES = 4_000_000
_FLAGS = 0x0808
"""Sizes follow the data (bit 3); names are UTF-8 (bit 11)."""
_MOST_16, _MOST_32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_VERSION, _VERSION = 45, 20
_TAR_BLOCK, _TAR_RECORD = 512, 10_240


class Member(NamedTuple):
    """A file and its name in the archive."""

    name: str
    file: StoredFile


async def zip_stream(members: AsyncIterator[Member]) -> AsyncIterator[bytes]:
    """A ZIP archive (APPNOTE 6.3.9), stored as it is: pictures are compressed already.

    The directory, which comes last, waits in a temporary file once it is large.
    """
    offset = count = 0
    moment = time.gmtime()
    date = (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
    clock = moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
    with tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES) as directory:
        async for name, file in members:
            raw = name.encode()
            stamp = struct.pack("<HHHHH", _VERSION, _FLAGS, 0, clock, date)
            head = b"PK\x03\x04" + stamp + struct.pack("<LLLHH", 0, 0, 0, len(raw), 0) + raw
            yield head
            crc = size_bytes = 0
            async for piece in file.chunks():
                crc = zlib.crc32(piece, crc)
                size_bytes += len(piece)
                yield piece
            yield struct.pack("<4sLLL", b"PK\x07\x08", crc, size_bytes, size_bytes)
            _add_to_directory(directory, raw, stamp, crc, size_bytes, offset)
            offset += len(head) + size_bytes + 16
            count += 1
        directory_bytes = directory.tell()
        directory.seek(0)
        while piece := directory.read(65_536):
            yield piece
    yield _zip_end(count, directory_bytes, offset)


def _add_to_directory(directory: IO[bytes], name: bytes, stamp: bytes, crc: int, size_bytes: int, offset: int) -> None:
    extra = struct.pack("<HHQ", 1, 8, offset) if offset >= _MOST_32 else b""
    version = struct.pack("<H", _ZIP64_VERSION if extra else _VERSION)
    directory.write(b"PK\x01\x02" + version + stamp)
    directory.write(
        struct.pack(
            "<LLLHHHHHLL", crc, size_bytes, size_bytes, len(name), len(extra), 0, 0, 0, 0, min(offset, _MOST_32)
        )
    )
    directory.write(name + extra)


def _zip_end(count: int, directory_bytes: int, offset: int) -> bytes:
    end = b""
    if count >= _MOST_16 or offset >= _MOST_32 or directory_bytes >= _MOST_32:
        fields = (44, _ZIP64_VERSION, _ZIP64_VERSION, 0, 0, count, count, directory_bytes, offset)
        end += b"PK\x06\x06" + struct.pack("<QHHLLQQQQ", *fields)
        end += b"PK\x06\x07" + struct.pack("<LQL", 0, offset + directory_bytes, 1)
    short = min(count, _MOST_16)
    places = (min(directory_bytes, _MOST_32), min(offset, _MOST_32), 0)
    return end + b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, short, short, *places)


async def tar_stream(members: AsyncIterator[Member]) -> AsyncIterator[bytes]:
    """A tar archive (POSIX pax). Raises ValueError if a file has another length than it claimed."""
    written = 0
    async for name, file in members:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = file.size_bytes, int(time.time()), 0o644
        head = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        yield head
        size_bytes = 0
        async for piece in file.chunks():
            size_bytes += len(piece)
            yield piece
        if size_bytes != file.size_bytes:
            raise ValueError(f"{name} changed while it was read")
        padding = -size_bytes % _TAR_BLOCK
        yield bytes(padding)
        written += len(head) + size_bytes + padding
    rest = 2 * _TAR_BLOCK
    yield bytes(rest + -(written + rest) % _TAR_RECORD)
