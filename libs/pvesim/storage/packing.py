"""Unpacking of downloaded files: gzip, bzip2 and Zstandard here, LZO with the tool that nodes use for it."""

import bz2
import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import zstandard

from libs.pvesim.errors import PveError

_LZO_TIMEOUT_S = 600


def _gunzip(source: Path, target: Path) -> None:
    with gzip.open(source, "rb") as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file)


def _bunzip2(source: Path, target: Path) -> None:
    with bz2.open(source, "rb") as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file)


def _unzstd(source: Path, target: Path) -> None:
    with source.open("rb") as packed, target.open("wb") as file:
        zstandard.ZstdDecompressor().copy_stream(packed, file)


def _unlzop(source: Path, target: Path) -> None:
    tool = shutil.which("lzop")
    if tool is None:
        raise PveError("command 'lzop -d -c' failed: unable to execute: No such file or directory")
    with source.open("rb") as packed, target.open("wb") as file:
        subprocess.run(  # noqa: S603  (a fixed command; the file comes as its input)
            [tool, "-d", "-c"], stdin=packed, stdout=file, stderr=subprocess.DEVNULL, check=True, timeout=_LZO_TIMEOUT_S
        )


UNPACKERS: dict[str, Callable[[Path, Path], None]] = {
    "bz2": _bunzip2,
    "gz": _gunzip,
    "lzo": _unlzop,
    "zst": _unzstd,
}


def unpack(path: Path, compression: str) -> None:
    """Replace a packed file by its content; blocking, call it in a thread. Raises the task error of a damaged one."""
    unpacked = path.with_suffix(".unpacked")
    try:
        UNPACKERS[compression](path, unpacked)
        unpacked.replace(path)
    except (OSError, EOFError, zstandard.ZstdError, subprocess.SubprocessError) as broken:
        raise PveError(f"decompression of '{path.name}' failed: {broken}") from broken
    finally:
        unpacked.unlink(missing_ok=True)
