"""What makes a QCOW2 image unsafe or unusable (QEMU, docs/interop/qcow2.txt)."""

import struct
from collections.abc import Iterator

from services.images.adapters.inspection.excerpt import Excerpt

BACKING_FILE = "The image refers to a backing file; make it stand alone first (qemu-img convert)"
DATA_FILE = "The image keeps its data in an external file; make it stand alone first (qemu-img convert)"
UNKNOWN = "The image uses features or a version of its format that are not known to be safe"
_ENCRYPTED = "The image is encrypted, so that no machine could start from it; decrypt it first (qemu-img convert)"
_CORRUPT = "The image is marked as damaged; repair it first (qemu-img check -r all)"
_OUTSIDE = "The QCOW2 image is cut off or damaged: its tables lie outside the file"

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_3 = struct.Struct(">QQQII")
_COMPRESSION_AT = 104
_DIRTY, _CORRUPT_BIT, _EXTERNAL, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
# Extended L2 entries say which parts of a cluster are there and refer to nothing outside the file; QEMU reads them
# since 5.2 (2020). oslo.utils calls them unknown because QEMU's older releases cannot open such an image.
_KNOWN = _DIRTY | _CORRUPT_BIT | _EXTERNAL | _COMPRESSION | _EXTENDED_L2
_ZLIB, _ZSTD = 0, 1
_CLUSTER_BITS = range(9, 22)
_END, _BACKING_FORMAT, _CRYPTO, _DATA_FILE_NAME = 0, 0xE2792ACA, 0x0537BE77, 0x44415441
_EXTENSION_REASONS = {_BACKING_FORMAT: BACKING_FILE, _CRYPTO: _ENCRYPTED, _DATA_FILE_NAME: DATA_FILE}


def faults(file: Excerpt) -> Iterator[str]:
    """Reasons to refuse the image, each in words for its owner; some may come twice."""
    header = _HEADER.unpack_from(file.head)
    version, cluster_bits, encryption = header[1], header[4], header[6]
    header_bytes = _HEADER.size
    if version == 3:  # noqa: PLR2004 - the newest there is
        yield from _feature_faults(file.head)
        (header_bytes,) = struct.unpack_from(">I", file.head, _COMPRESSION_AT - 4)
    elif version != 2:  # noqa: PLR2004 - the one before it
        yield UNKNOWN
        return
    if encryption:
        yield _ENCRYPTED
    if cluster_bits not in _CLUSTER_BITS:
        yield _OUTSIDE
        return
    cluster_bytes = 1 << cluster_bits
    yield from _table_faults(header, cluster_bytes, file.size_bytes)
    yield from _extension_faults(file.head[:cluster_bytes], header_bytes, complete=cluster_bytes <= len(file.head))


def _feature_faults(head: bytes) -> Iterator[str]:
    incompatible, _, _, _, header_bytes = _HEADER_3.unpack_from(head, _HEADER.size)
    if incompatible & ~_KNOWN:
        yield UNKNOWN
    if incompatible & _CORRUPT_BIT:
        yield _CORRUPT
    if incompatible & _EXTERNAL:
        yield DATA_FILE
    compression = head[_COMPRESSION_AT] if header_bytes > _COMPRESSION_AT else _ZLIB
    if compression != (_ZSTD if incompatible & _COMPRESSION else _ZLIB):
        yield UNKNOWN


def _table_faults(header: tuple[int, ...], cluster_bytes: int, size_bytes: int) -> Iterator[str]:
    l1_entries, l1_at, refcounts_at, refcount_clusters, snapshots, snapshots_at = header[7:]
    # The last table may be shorter than its cluster, the L1 table has no holes.
    tables = [(l1_at, l1_entries * 8), (refcounts_at, 1 if refcount_clusters else 0)]
    if snapshots:
        tables.append((snapshots_at, 40 * snapshots))
    for at, length in tables:
        if length and (at < cluster_bytes or at % cluster_bytes or at + length > size_bytes):
            yield _OUTSIDE


def _extension_faults(cluster: bytes, at: int, *, complete: bool) -> Iterator[str]:
    """Follow the header's extensions to their end, or to that of the first cluster."""
    while at + 8 <= len(cluster):
        kind, length = struct.unpack_from(">II", cluster, at)
        if kind == _END:
            return
        if kind in _EXTENSION_REASONS and length:  # a rebased image keeps an empty name of its backing file's format
            yield _EXTENSION_REASONS[kind]
        at += 8 + (length + 7) // 8 * 8
    if at > len(cluster) or not complete:
        yield UNKNOWN
