"""Small ISO 9660 images in memory: one folder of files, with Joliet names, for seeds that guests read at their start.

Source: ECMA-119 (ISO 9660), level 1, and the Joliet specification for the names as they are.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

SECTOR = 2048
_SYSTEM_SECTORS = 16
_JOLIET = b"%/E"
_DIRECTORY = 2
_EPOCH_YEAR = 1900


@dataclass(frozen=True, slots=True)
class _File:
    number: int
    name: str
    content: bytes
    sector: int

    def short(self) -> bytes:
        """A level 1 name, which readers without Joliet see."""
        return f"F{self.number:07d}.;1".encode()

    def joliet(self) -> bytes:
        return self.name.encode("utf-16-be")


def build(label: str, files: Mapping[str, bytes]) -> bytes:
    """An image with that volume label; `files` are few and small, and have names without separators."""
    made = datetime.now(UTC)
    # Descriptors (primary, Joliet, end), path tables (two byte orders, twice), two folders, then the files.
    first = _SYSTEM_SECTORS + 3
    tables = {"primary": (first, first + 1), "joliet": (first + 2, first + 3)}
    folders = {"primary": first + 4, "joliet": first + 5}
    sector = first + 6
    placed = []
    for number, (name, content) in enumerate(sorted(files.items())):
        placed.append(_File(number, name, content, sector))
        sector += max(1, -(-len(content) // SECTOR))
    total = sector
    parts = [bytes(SECTOR * _SYSTEM_SECTORS)]
    plain = label.upper().encode()[:32].ljust(32, b" ")
    parts.append(_descriptor(1, plain, tables["primary"], folders["primary"], total, made))
    wide = label.encode("utf-16-be").ljust(32, b"\0")
    parts.append(_descriptor(2, wide, tables["joliet"], folders["joliet"], total, made))
    parts.append(b"\xffCD001\x01".ljust(SECTOR, b"\0"))
    for kind in ("primary", "joliet"):
        parts += [_path_table(folders[kind], "<"), _path_table(folders[kind], ">")]
    parts.append(_folder(folders["primary"], [(one.short(), one) for one in placed], made))
    parts.append(_folder(folders["joliet"], [(one.joliet(), one) for one in placed], made))
    parts += [one.content.ljust(max(1, -(-len(one.content) // SECTOR)) * SECTOR, b"\0") for one in placed]
    return b"".join(parts)


def _both(value: int, size: int) -> bytes:
    """A number in both byte orders, as the format wants it."""
    letter = {2: "H", 4: "I"}[size]
    return struct.pack(f"<{letter}", value) + struct.pack(f">{letter}", value)


def _descriptor(kind: int, label: bytes, tables: tuple[int, int], folder: int, total: int, made: datetime) -> bytes:
    blank = b" " if kind == 1 else b"\0 "
    stamp = made.strftime("%Y%m%d%H%M%S00").encode() + b"\0"
    never = b"0" * 16 + b"\0"
    parts = [
        bytes([kind]),
        b"CD001\x01\0",
        (blank * 32)[:32],
        label,
        bytes(8),
        _both(total, 4),
        (b"" if kind == 1 else _JOLIET).ljust(32, b"\0"),
        _both(1, 2),
        _both(1, 2),
        _both(SECTOR, 2),
        _both(10, 4),  # the path table's length: one folder
        struct.pack("<II", tables[0], 0),
        struct.pack(">II", tables[1], 0),
        _record(b"\0", folder, SECTOR, _DIRECTORY, made),
        (blank * 512)[: 128 * 4],  # volume set, publisher, preparer, application
        (blank * 128)[: 37 * 3],  # copyright, abstract and bibliographic files
        stamp,
        stamp,
        never,
        stamp,
        b"\x01\0",
    ]
    # A supplementary descriptor's odd-sized fields end with a single zero byte.
    return b"".join(parts).ljust(SECTOR, b"\0")[:SECTOR]


def _path_table(folder: int, order: str) -> bytes:
    return (struct.pack(f"{order}BBIH", 1, 0, folder, 1) + b"\0\0").ljust(SECTOR, b"\0")


def _folder(sector: int, entries: Sequence[tuple[bytes, _File]], made: datetime) -> bytes:
    records = [_record(b"\0", sector, SECTOR, _DIRECTORY, made), _record(b"\x01", sector, SECTOR, _DIRECTORY, made)]
    records += [_record(name, one.sector, len(one.content), 0, made) for name, one in entries]
    folder = b"".join(records)
    if len(folder) > SECTOR:
        raise ValueError("more files than one sector of names holds")
    return folder.ljust(SECTOR, b"\0")


def _record(name: bytes, sector: int, size: int, flags: int, made: datetime) -> bytes:
    when = bytes([made.year - _EPOCH_YEAR, made.month, made.day, made.hour, made.minute, made.second, 0])
    body = b"\0" + _both(sector, 4) + _both(size, 4) + when + bytes([flags, 0, 0]) + _both(1, 2)
    body += bytes([len(name)]) + name + (b"" if len(name) % 2 else b"\0")
    return bytes([len(body) + 1]) + body
