"""Whether a disk is whole as far as its own tables tell: MBR, GPT (UEFI 2.10, 5) and ISO 9660 (ECMA-119, 8.4)."""

import struct
import zlib
from collections.abc import Iterator

from services.images.adapters.inspection.excerpt import SECTOR_BYTES, Excerpt

_INVALID = "The disk's partition table is not valid"
_CUT_OFF = "The disk is cut off: its partition table tells of more than the file has"
_ISO_CUT_OFF = "The ISO is cut off: its volume is larger than the file"

_TABLE_AT, _PROTECTIVE = 446, 0xEE
_MEDIA = frozenset({0xF0, *range(0xF8, 0x100)})
_SECTOR_SIZES = (512, 4096)
_VOLUME_AT = 16 * 2048
_PADDING_BYTES = 150 * 2048
"""A CD's padding counts as part of its volume and is often left out of the file."""


def is_volume(head: bytes) -> bool:
    """Whether the first sector is a file system's own (FAT, exFAT, NTFS): it ends like an MBR and has no partitions."""
    if len(head) < SECTOR_BYTES or head[0] not in (0xEB, 0xE9):
        return False
    sector_bytes, cluster_sectors = struct.unpack_from("<HB", head, 11)
    counted = sector_bytes in (512, 1024, 2048, 4096) and cluster_sectors != 0 and head[21] in _MEDIA
    return counted or head[3:11] == b"EXFAT   "


def partition_faults(head: bytes, disk_bytes: int) -> Iterator[str]:
    """Reasons to refuse a disk whose first sector ends with the mark of a partition table."""
    entries = [struct.unpack_from("<B3xB3xII", head, _TABLE_AT + 16 * number) for number in range(4)]
    used = [entry for entry in entries if entry[1]]
    if not used or any(flag not in (0, 0x80) for flag, *_ in entries):
        yield _INVALID
    elif any(kind == _PROTECTIVE for _, kind, _, _ in used):
        yield from _gpt_faults(head, disk_bytes)
    else:
        for _, _, first, sectors in used:
            if not first or not sectors:
                yield _INVALID
            elif (first + sectors) * SECTOR_BYTES > disk_bytes:
                yield _CUT_OFF


def _gpt_faults(head: bytes, disk_bytes: int) -> Iterator[str]:
    for sector_bytes in _SECTOR_SIZES:
        header = head[sector_bytes : sector_bytes + SECTOR_BYTES]
        if len(header) == SECTOR_BYTES and header.startswith(b"EFI PART"):
            break
    else:
        yield _INVALID
        return
    length, checksum = struct.unpack_from("<II", header, 12)
    own_at, backup_at = struct.unpack_from("<QQ", header, 24)
    summed = header[:16] + bytes(4) + header[20:length]
    if not 92 <= length <= SECTOR_BYTES or zlib.crc32(summed) != checksum or own_at != 1:  # noqa: PLR2004 - its fields
        yield _INVALID
    elif (backup_at + 1) * sector_bytes > disk_bytes:
        yield _CUT_OFF


def volume_faults(file: Excerpt) -> Iterator[str]:
    """Reasons to refuse a disc."""
    descriptor = file.head[_VOLUME_AT : _VOLUME_AT + 132]
    if descriptor[:1] != b"\1":  # not a primary descriptor: it tells no size
        return
    (blocks,), (block_bytes,) = struct.unpack_from("<I", descriptor, 80), struct.unpack_from("<H", descriptor, 128)
    if blocks * block_bytes > file.size_bytes + _PADDING_BYTES:
        yield _ISO_CUT_OFF
