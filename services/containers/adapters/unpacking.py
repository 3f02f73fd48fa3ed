"""Unpacks a ZIP into an empty folder: the directory is judged first, and the caps are enforced while extracting."""

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from services.containers.domain.archives import Caps, Entry, require_safe
from services.containers.errors import ArchiveRefused

_CHUNK_BYTES = 262_144
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_ZIP64_LOCATOR = b"PK\x06\x07"
_MAX_COMMENT_BYTES = 65_535
_DIRECTORY_BYTES_PER_ENTRY = 2048
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
_UNIX = 3

StopCheck = Callable[[], None]

# What zipfile raises for a damaged archive; NotImplementedError for a compression or an encryption that it cannot read.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, UnicodeError, NotImplementedError)


def unpack_zip(archive: Path, target: Path, caps: Caps, *, check_stop: StopCheck) -> int:
    """Unpack into `target`, an empty folder of ours; gives the number of files. Raises ArchiveRefused; blocks.

    `check_stop` is called often and may raise to break off.
    """
    try:
        with archive.open("rb") as file:
            _require_small_directory(file, caps)
            with zipfile.ZipFile(file) as zipped:
                infos = zipped.infolist()
                require_safe([_entry(info) for info in infos], archive.stat().st_size, caps)
                return _extract(zipped, infos, target, caps, check_stop)
    except _UNREADABLE as error:
        raise ArchiveRefused(f"The ZIP cannot be read: {error}") from error


def _require_small_directory(file: IO[bytes], caps: Caps) -> None:
    """Refuse a directory that would take long only to list (APPNOTE 4.3.16, end of central directory record).

    The record is looked for exactly as `zipfile` does it, so that both read the same one.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - _MAX_COMMENT_BYTES))
    tail = file.read()
    at = len(tail) - _END.size
    if at < 0:
        raise ArchiveRefused("The file is too short for a ZIP")
    if not (tail[at:].startswith(_END_SIGNATURE) and tail.endswith(b"\0\0")):
        at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) - at < _END.size:
        raise ArchiveRefused("The file is not a ZIP, or its end is missing")
    _, _, _, _, entries, directory_bytes, _, _ = _END.unpack_from(tail, at)
    if _ZIP64_LOCATOR in tail[max(0, at - 20) : at]:
        raise ArchiveRefused("ZIP64 archives are not unpacked: the ZIP is too large or has too many entries")
    if entries > caps.max_files or directory_bytes > caps.max_files * _DIRECTORY_BYTES_PER_ENTRY:
        raise ArchiveRefused(f"The ZIP has {entries} entries; at most {caps.max_files} are unpacked")


def _entry(info: zipfile.ZipInfo) -> Entry:
    return Entry(
        name=info.orig_filename,  # the raw one: `filename` is cut at a NUL
        size_bytes=info.file_size,
        compressed_bytes=info.compress_size,
        offset=info.header_offset,
        method=info.compress_type,
        flags=info.flag_bits,
        unix_mode=info.external_attr >> 16 if info.create_system == _UNIX else 0,
    )


def _extract(
    zipped: zipfile.ZipFile, infos: list[zipfile.ZipInfo], target: Path, caps: Caps, check_stop: StopCheck
) -> int:
    files, left = 0, caps.max_bytes
    for info in infos:
        check_stop()
        path = target.joinpath(*info.orig_filename.removesuffix("/").split("/"))
        path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        if info.orig_filename.endswith("/"):
            path.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            continue
        files += 1
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _FILE_MODE)
        with os.fdopen(descriptor, "wb") as written, zipped.open(info) as content:
            while piece := content.read(_CHUNK_BYTES):
                check_stop()
                left -= len(piece)
                if left < 0:  # the directory told a smaller sum than the data is
                    raise ArchiveRefused(f"The ZIP unpacks to more than {caps.max_bytes} bytes")
                written.write(piece)
    return files
