"""Beginnings of bodies whose connections broke, kept for the next attempt of this process."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MOST = 64
_MOST_BYTES = 512 * 1024 * 1024
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
    """Bounded in number and bytes; the oldest go first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Partial] = OrderedDict()

    def keep(self, url: str, partial: Partial) -> None:
        self.drop(url)
        self._kept[url] = partial
        while len(self._kept) > _MOST or sum(kept.size_bytes for kept in self._kept.values()) > _MOST_BYTES:
            self._kept.popitem(last=False)[1].file.unlink(missing_ok=True)

    def take(self, url: str) -> Partial | None:
        """The beginning of a URL's body; whoever takes it owns its file."""
        return self._kept.pop(url, None)

    def drop(self, url: str) -> None:
        known = self._kept.pop(url, None)
        if known is not None:
            known.file.unlink(missing_ok=True)
