"""Which ZIP entries may be unpacked, and how much in all: the rules, apart from any file."""

import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.containers.errors import ArchiveRefused

MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
MAX_DEPTH = 32
MAX_RATIO = 100
RATIO_FLOOR_BYTES = 10 * 1024**2
"""Below this total any ratio is harmless."""
STORED, DEFLATED = 0, 8
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1 | 0x40
_DRIVE = re.compile(r"[A-Za-z]:")
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9¹²³])([. ].*)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as the archive's directory shows it: `name` raw, `unix_mode` 0 if not given, its header's `offset`."""

    name: str
    size_bytes: int
    compressed_bytes: int
    offset: int
    method: int
    flags: int
    unix_mode: int

    @property
    def is_folder(self) -> bool:
        return self.name.endswith("/")


@dataclass(frozen=True, slots=True)
class Caps:
    """How much an archive may unpack to."""

    max_bytes: int
    max_files: int


def require_safe(entries: Sequence[Entry], archive_bytes: int, caps: Caps) -> None:
    """Raise ArchiveRefused, naming the entry, unless every entry may be unpacked and the sum keeps within the caps."""
    if len(entries) > caps.max_files:
        raise ArchiveRefused(f"The ZIP has {len(entries)} entries; at most {caps.max_files} are unpacked")
    total = sum(entry.size_bytes for entry in entries)
    if total > caps.max_bytes:
        raise ArchiveRefused(f"The ZIP unpacks to {total} bytes; at most {caps.max_bytes} are allowed")
    if total > RATIO_FLOOR_BYTES and total > MAX_RATIO * archive_bytes:
        raise ArchiveRefused(f"The ZIP unpacks to more than {MAX_RATIO} times its size")
    for entry in entries:
        _require_plain(entry)
        require_safe_name(entry.name)
    _require_apart(entries)
    _require_distinct(entries)


def require_safe_name(name: str) -> None:
    """Raise ArchiveRefused unless the name is a plain relative path on every system."""
    path = name.removesuffix("/")
    if not path:
        raise _refusal(name, "has no name")
    if "\\" in path:
        raise _refusal(name, "has a backslash in its name")
    if any(ord(character) < 32 or ord(character) == 127 for character in path):  # noqa: PLR2004 - ASCII controls
        raise _refusal(name, "has a control character in its name")
    if path.startswith("/") or _DRIVE.match(path):
        raise _refusal(name, "has an absolute path")
    if len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise _refusal(name, "has too long a path")
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        raise _refusal(name, f"lies deeper than {MAX_DEPTH} folders")
    for part in parts:
        _require_safe_part(name, part)


def _require_safe_part(name: str, part: str) -> None:
    if part in ("", ".", ".."):
        raise _refusal(name, "has an empty, '.' or '..' part in its path")
    if len(part.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise _refusal(name, "has too long a name")
    if _DEVICE.fullmatch(part):
        raise _refusal(name, "is named after a device")
    if ":" in part:
        raise _refusal(name, "has a colon in its name")
    if part[-1] in ". ":
        raise _refusal(name, "has a name that ends in a dot or space")


def _require_plain(entry: Entry) -> None:
    kind = stat.S_IFMT(entry.unix_mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "a special file"
        raise _refusal(entry.name, f"is {what}")
    if (kind == stat.S_IFDIR) != entry.is_folder and kind != 0:
        raise _refusal(entry.name, "is a folder by its mode and a file by its name, or the reverse")
    if entry.flags & _ENCRYPTED:
        raise _refusal(entry.name, "is encrypted")
    if entry.method not in (STORED, DEFLATED):
        raise _refusal(entry.name, "is compressed by a method other than deflate")
    if entry.is_folder and entry.size_bytes:
        raise _refusal(entry.name, "is a folder with content")


def _require_apart(entries: Iterable[Entry]) -> None:
    """Entries that share bytes of the archive let a small one unpack to a huge sum (quoted overlap)."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.offset < end:
            raise _refusal(entry.name, "overlaps another entry")
        end = entry.offset + _LOCAL_HEADER_BYTES + entry.compressed_bytes


def _require_distinct(entries: Iterable[Entry]) -> None:
    files: set[str] = set()
    folders: set[str] = set()
    for entry in entries:
        path = entry.name.removesuffix("/")
        parts = path.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if entry.is_folder:
            folders.add(path)
        elif path in files:
            raise _refusal(entry.name, "is there twice")
        else:
            files.add(path)
    both = files & folders
    if both:
        raise _refusal(min(both), "is a file and a folder at once")


def _refusal(name: str, why: str) -> ArchiveRefused:
    return ArchiveRefused(f"The entry {name[:120]!r} {why}")
