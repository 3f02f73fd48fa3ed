"""What a VHD image's footer tells, and what makes it unsafe (Virtual Hard Disk Image Format Specification 1.0)."""

import struct
from collections.abc import Iterator

from services.images.adapters.inspection.excerpt import SECTOR_BYTES, Excerpt

_PARENT = "The VHD image refers to a parent image; merge its differences first"
_CONTRADICTION = "The VHD image's footer does not fit its content"
_CHECKSUM = "The VHD image is damaged: a checksum is wrong"
_OUTSIDE = "The VHD image is cut off or damaged: its tables lie outside the file"

_MARK = b"conectix"
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_CHECKSUM_AT, _SPARSE_CHECKSUM_AT = 64, 36
_SPARSE_HEADER_BYTES = 1024
_LOCATORS_AT, _LOCATOR_BYTES = 576, 24
_BOOT_MARK = b"\x55\xaa"


def virtual_size(file: Excerpt) -> int:
    """The disk's size in bytes: the current one, which is the one that counts once a disk was resized."""
    footer = file.head if file.head.startswith(_MARK) else file.last_sector
    return int(struct.unpack_from(">Q", footer, 48)[0])


def faults(file: Excerpt) -> Iterator[str]:
    """Reasons to refuse the image, each in words for its owner; some may come twice."""
    begin, end = file.head[:SECTOR_BYTES], file.last_sector
    footers = [sector for sector in (begin, end) if sector.startswith(_MARK)]
    for footer in footers:
        if _checksum(footer, _CHECKSUM_AT) != _field(footer, _CHECKSUM_AT):
            yield _CHECKSUM
        if _field(footer, 60) == _DIFFERENCING:
            yield _PARENT
    if begin.startswith(_MARK):
        yield from _dynamic_faults(file, begin, end)
    elif _field(end, 60) != _FIXED:
        yield _CONTRADICTION
    elif virtual_size(file) + SECTOR_BYTES != file.size_bytes:
        yield _OUTSIDE


def _dynamic_faults(file: Excerpt, begin: bytes, end: bytes) -> Iterator[str]:
    if not end.startswith(_MARK):
        yield _OUTSIDE
    elif begin != end or _field(begin, 60) not in (_DYNAMIC, _DIFFERENCING) or begin.endswith(_BOOT_MARK):
        yield _CONTRADICTION
    (header_at,) = struct.unpack_from(">Q", begin, 16)
    header = file.head[header_at : header_at + _SPARSE_HEADER_BYTES]
    if len(header) < _SPARSE_HEADER_BYTES or not header.startswith(b"cxsparse"):
        yield _OUTSIDE
        return
    if _checksum(header, _SPARSE_CHECKSUM_AT) != _field(header, _SPARSE_CHECKSUM_AT):
        yield _CHECKSUM
    table_at, _, blocks, block_bytes = struct.unpack_from(">QIII", header, 16)
    if table_at + 4 * blocks > file.size_bytes or blocks * block_bytes < virtual_size(file):
        yield _OUTSIDE
    locators = range(_LOCATORS_AT, _LOCATORS_AT + 8 * _LOCATOR_BYTES, _LOCATOR_BYTES)
    if any(header[64:_LOCATORS_AT]) or any(_field(header, at) for at in locators):
        yield _PARENT


def _field(sector: bytes, at: int) -> int:
    return int(struct.unpack_from(">I", sector, at)[0])


def _checksum(sector: bytes, at: int) -> int:
    """The one's complement of the sum of all bytes but the checksum's own."""
    return ~(sum(sector) - sum(sector[at : at + 4])) & 0xFFFFFFFF
