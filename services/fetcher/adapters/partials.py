"""Beginnings of bodies whose connections broke, kept for the next attempt, by this process or the one after it."""

import contextlib
import hashlib
import json
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

_MOST = 64
_MOST_BYTES = 512 * 1024 * 1024
_MOST_S = 7 * 86_400
_TRAILER = struct.Struct(">I")
LEAST_BYTES = 65_536
"""What is shorter is fetched again as a whole."""


@dataclass(frozen=True, slots=True)
class Partial:
    """The first `size_bytes` of what `validator` (a strong ETag or a date) stands for, and their hash so far."""

    file: Path
    size_bytes: int
    digest: Any
    validator: str


class Partials:
    """One file for each, named by its URL; bounded in number, bytes and age, the oldest go first.

    What is known of a beginning is written behind it, its hash included: a file that a crash of the machine has
    damaged, or that is not ours, is none. Processes that share the folder take a file by renaming it.
    """

    def __init__(self, folder: Callable[[], Path], spool: Callable[[], Path]) -> None:
        self._folder = folder
        self._spool = spool
        self._known: OrderedDict[str, int] | None = None

    def keep(self, url: str, partial: Partial) -> None:
        """Take over the file of a partial body; one that cannot be kept goes. Blocks."""
        name, known = _name(url), self._names()
        facts = {"url": url, "size_bytes": partial.size_bytes, "sha256": partial.digest.copy().hexdigest()}
        trailer = json.dumps({**facts, "validator": partial.validator}).encode()
        try:
            with partial.file.open("ab") as target:
                target.write(trailer + _TRAILER.pack(len(trailer)))
            partial.file.replace(self._folder() / name)
        except OSError:
            with contextlib.suppress(OSError):
                partial.file.unlink(missing_ok=True)
            return
        known[name] = partial.size_bytes
        known.move_to_end(name)
        while len(known) > _MOST or sum(known.values()) > _MOST_BYTES:
            (self._folder() / known.popitem(last=False)[0]).unlink(missing_ok=True)

    def has(self, url: str) -> bool:
        """Whether `take` may find something."""
        names = self._names()
        return bool(names) and _name(url) in names

    def take(self, url: str) -> Partial | None:
        """The beginning of a URL's body, as far as it is whole; whoever takes it owns its file. Blocks."""
        name = _name(url)
        self._names().pop(name, None)
        taken = self._spool() / f"{name}.part"
        try:
            (self._folder() / name).rename(taken)
            with taken.open("r+b") as source:
                return _read(source, taken, url)
        except FileNotFoundError:
            return None
        except (KeyError, OSError, TypeError, ValueError, struct.error):
            taken.unlink(missing_ok=True)
            return None

    def _names(self) -> OrderedDict[str, int]:
        """What lies in the folder: read once, then remembered."""
        if self._known is None:
            found = sorted((file.stat().st_mtime, file.name, file.stat().st_size) for file in self._folder().iterdir())
            self._known = OrderedDict()
            for changed_at, name, size_bytes in found:
                if changed_at < time.time() - _MOST_S:
                    (self._folder() / name).unlink(missing_ok=True)
                else:
                    self._known[name] = size_bytes
        return self._known


def _read(source: BufferedRandom, file: Path, url: str) -> Partial:
    """Cut off what is written behind the beginning; raises ValueError and others for what is not as it was kept."""
    source.seek(-_TRAILER.size, 2)
    (length,) = _TRAILER.unpack(source.read())
    source.seek(-_TRAILER.size - length, 2)
    size_bytes = source.tell()
    facts = json.loads(source.read(length))
    source.seek(0)
    source.truncate(size_bytes)
    digest = hashlib.file_digest(source, "sha256")
    if (facts["url"], facts["size_bytes"], facts["sha256"]) != (url, size_bytes, digest.hexdigest()):
        raise ValueError("not what was kept")
    return Partial(file, size_bytes, digest, str(facts["validator"]))


def _name(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()
