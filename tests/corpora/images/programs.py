"""Tells whether this process starts another program while a block runs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_STARTS = frozenset({"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"})
"""Audit events that CPython raises before it starts a program, whichever module asks (the table in its manual)."""
_watched: list[list[str]] = []
_installed: list[bool] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _STARTS:
        for started in _watched:
            started.append(f"{event} {arguments[:1]}")


@contextmanager
def no_program_starts() -> Iterator[None]:
    """Fail if a program was started before the block ended."""
    if not _installed:  # an audit hook stays for good
        sys.addaudithook(_watch)
        _installed.append(True)
    started: list[str] = []
    _watched.append(started)
    try:
        yield
    finally:
        _watched.remove(started)
    assert not started, f"programs were started: {started}"
