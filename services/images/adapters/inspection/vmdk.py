"""What makes a VMDK image unsafe: all that QEMU would follow out of the file (VMware, Virtual Disk Format 5.0).

Only single files that stand alone are let in: monolithicSparse and streamOptimized.
"""

import re
import struct
from collections.abc import Iterator

from services.images.adapters.inspection.excerpt import SECTOR_BYTES, Excerpt

_PARENT = "The VMDK image refers to a parent image; consolidate its snapshots first"
_ELSEWHERE = "The VMDK image keeps its data in other files; export it as one stream-optimised file"
DESCRIPTOR = "The VMDK descriptor is not that of a single stand-alone file (monolithicSparse or streamOptimized)"
FOOTER = "The VMDK footer contradicts its header"
_OUTSIDE = "The VMDK image is cut off or damaged: its grain directory lies outside the file"

# Signature, version, flags, capacity, grain size, descriptor's offset and size, entries per table, both directories.
_HEADER = struct.Struct("<4sIIQQQQIQQ")
_AT_END = (1 << 64) - 1
_QEMU_READS_BYTES = 20 * SECTOR_BYTES
"""How much of the file QEMU takes for the descriptor, whatever length the header tells."""
_NO_PARENT = "ffffffff"
_ACCESS = ("rw", "rdonly", "noaccess")
_OWN_EXTENT = re.compile(r'(?:rw|rdonly|noaccess) \d+ sparse "[^"/\\]+"')


def faults(file: Excerpt) -> Iterator[str]:
    """Reasons to refuse the image, each in words for its owner; some may come twice."""
    if len(file.head) < _HEADER.size:
        return
    header = _HEADER.unpack_from(file.head)
    yield from _descriptor_faults(_descriptor(file.head, header[6]))
    directory_at = header[9]
    if directory_at == _AT_END:
        footer = _HEADER.unpack_from(file.tail)  # all but the place of the directories must be the same
        if (*footer[:2], *footer[3:8]) != (*header[:2], *header[3:8]):
            yield FOOTER
        directory_at = footer[9]
    if directory_at * SECTOR_BYTES >= file.size_bytes:
        yield _OUTSIDE


def _descriptor(head: bytes, declared_sectors: int) -> str:
    """The text as far as anyone may read it: QEMU goes on behind its declared end."""
    length = max(_QEMU_READS_BYTES, declared_sectors * SECTOR_BYTES)
    text, _, _ = head[SECTOR_BYTES : SECTOR_BYTES + length].partition(b"\0")
    return text.decode("latin-1").lower()


def _descriptor_faults(text: str) -> Iterator[str]:
    if "parentfilenamehint" in text:  # QEMU looks for it in comments, too
        yield _PARENT
    if text.count("createtype") != 1:  # readers differ in which one counts
        yield DESCRIPTOR
    extents = 0
    for line in (line.strip() for line in text.splitlines()):
        name, _, value = (part.strip().strip('"') for part in line.partition("="))
        if name == "parentcid" and value != _NO_PARENT:
            yield _PARENT
        if line.startswith(_ACCESS):
            extents += 1
            if _OWN_EXTENT.fullmatch(line) is None:
                yield _ELSEWHERE
    if extents > 1:
        yield _ELSEWHERE
