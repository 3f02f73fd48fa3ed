"""ZIPs that must never be unpacked, made as needed."""

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence

PLAIN = b"hello"


def named(*names: str, content: bytes = PLAIN) -> bytes:
    """A ZIP whose entries bear exactly these names."""
    return raw([(name.encode(), content) for name in names])


def raw(entries: Sequence[tuple[bytes, bytes]], **changes: int) -> bytes:
    """Write a ZIP by hand (APPNOTE 4.3), so that nothing cleans its names; `changes` spoil each entry's directory."""
    body, directory = b"", b""
    for name, content in entries:
        fields = {"flags": 0x800, "method": 0, "mode": 0o100644, "system": 3, "size": len(content), **changes}
        offset = fields.get("offset", len(body))
        sizes = (zlib.crc32(content), len(content), fields["size"], len(name))
        body += struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, fields["flags"], fields["method"], 0, 0, *sizes, 0)
        body += name + content
        directory += struct.pack(
            "<4s2B5H3L5H2L",
            b"PK\x01\x02",
            20,
            fields["system"],
            20,
            fields["flags"],
            fields["method"],
            0,
            0,
            *sizes,
            0,
            0,
            0,
            0,
            fields["mode"] << 16,
            offset,
        ) + name  # fmt: skip
    count = len(entries)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


def special(kind: int) -> bytes:
    """A file of a special kind by its Unix mode; a symbolic link's content is its target."""
    return raw([(b"link", b"/etc/passwd")], mode=kind | 0o777)


def ratio_bomb() -> bytes:
    """A few kilobytes that unpack to 100 MiB of zeros."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        zipped.writestr("zeros", bytes(100 << 20))
    return written.getvalue()


def size_bomb() -> bytes:
    """Stored, so that no ratio tells, but more than the caps of the tests."""
    return named("a", "b", "c", content=bytes(8 << 20))


def overlapping(count: int = 500) -> bytes:
    """Entries that all share one compressed kernel: each unpacks to 800 kB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    kernel = packer.compress(bytes(800_000)) + packer.flush()
    names = [f"f{place:04}".encode() for place in range(count)]
    crc = zlib.crc32(bytes(800_000))
    sizes = (crc, len(kernel), 800_000, 5)
    body = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0, *sizes, 0) + names[0] + kernel
    directory = b"".join(
        struct.pack("<4s2B5H3L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 8, 0, 0, *sizes, 0, 0, 0, 0, 0, 0) + name
        for name in names
    )
    return body + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)


def quoting(count: int = 400) -> bytes:
    """Quoted overlap: each entry's data begins with stored blocks that quote the next entry's header."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    plain = bytes(1_000_000)
    data = packer.compress(plain) + packer.flush()
    body, offsets, records = b"", [], []
    for place in reversed(range(count)):
        name = f"q{place:04}".encode()
        crc = zlib.crc32(plain)
        header = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(data), len(plain), 5, 0) + name
        records.append((name, crc, len(data), len(plain)))
        offsets.append(len(header))
        quoted = header + (body or b"")
        body = quoted if body else header + data
        plain = header[: len(header)] + plain
        data = struct.pack("<BHH", 0, len(header), len(header) ^ 0xFFFF) + header + data
    directory, at = b"", 0
    for (name, crc, packed, size), length in zip(reversed(records), reversed(offsets), strict=True):
        directory += struct.pack(
            "<4s2B5H3L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 8, 0, 0, crc, packed, size, 5, 0, 0, 0, 0, 0, at
        ) + name  # fmt: skip
        at += length
    return body + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)


def lying_size() -> bytes:
    """The directory claims five bytes where the data has a million."""
    return raw([(b"a", bytes(1_000_000))], size=5)


def encrypted() -> bytes:
    return raw([(b"a", PLAIN)], flags=0x801)


def many(count: int) -> bytes:
    return raw([(f"{place}".encode(), b"") for place in range(count)])


def giant_directory() -> bytes:
    """An end record that claims one entry before a directory of many."""
    whole = bytearray(many(30_000))
    struct.pack_into("<HH", whole, len(whole) - 14, 1, 1)
    return bytes(whole)


def zip64() -> bytes:
    """An end that sends readers to a second, larger directory."""
    plain = named("a")
    end = len(plain) - 22
    return plain[:end] + struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1) + plain[end:]


def damaged() -> bytes:
    spoilt = bytearray(named("a", content=PLAIN * 100))
    spoilt[60] ^= 0xFF
    return bytes(spoilt)


CASES: dict[str, Callable[[], bytes]] = {
    "parent": lambda: named("../evil"),
    "parent inside": lambda: named("a/../../evil"),
    "parent at the end": lambda: named("a/.."),
    "dot": lambda: named("./a"),
    "empty part": lambda: named("a//b"),
    "absolute": lambda: named("/etc/cron.d/evil"),
    "two slashes": lambda: named("//host/share"),
    "drive": lambda: named("C:/evil"),
    "drive, relative": lambda: named("c:evil"),
    "stream": lambda: named("a.txt:stream"),
    "backslash": lambda: named("..\\evil"),
    "share": lambda: named("\\\\host\\share"),
    "NUL": lambda: named("a.html\0.php"),
    "newline": lambda: named("a\nb"),
    "escape": lambda: named("\x1b[2Ja"),
    "device": lambda: named("CON"),
    "device with an extension": lambda: named("a/nul.txt"),
    "serial port": lambda: named("Com1"),
    "printer": lambda: named("lpt9.html/x"),
    "dot at the end": lambda: named("a./b"),
    "space at the end": lambda: named("a /b"),
    "no name": lambda: named(""),
    "only a slash": lambda: named("/"),
    "long name": lambda: named("a" * 256),
    "long path": lambda: named("/".join(["abcdefghij"] * 150)),
    "deep path": lambda: named("/".join(["a"] * 40)),
    "twice": lambda: named("a", "a"),
    "file and folder": lambda: named("a", "a/b"),
    "symbolic link": lambda: special(stat.S_IFLNK),
    "device file": lambda: special(stat.S_IFCHR),
    "pipe": lambda: special(stat.S_IFIFO),
    "socket": lambda: special(stat.S_IFSOCK),
    "link then file through it": lambda: raw([(b"link", b"/tmp"), (b"link/x", b"evil")], mode=stat.S_IFLNK | 0o777),
    "encrypted": encrypted,
    "bzip2": lambda: raw([(b"a", PLAIN)], method=12),
    "folder with content": lambda: named("a/"),
    "ratio bomb": ratio_bomb,
    "size bomb": size_bomb,
    "overlap": overlapping,
    "quoted overlap": quoting,
    "lying size": lying_size,
    "too many entries": lambda: many(2_000),
    "giant directory": giant_directory,
    "ZIP64": zip64,
    "damaged": damaged,
    "cut off": lambda: named("a", "b")[:-30],
    "not a ZIP": lambda: b"<html>" * 100,
    "empty": lambda: b"",
    "wrong offset": lambda: raw([(b"a", PLAIN)], offset=1_000_000),
}
