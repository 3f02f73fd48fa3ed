"""Reads containers' logs in threads and hands their lines to the event loop."""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import requests

from services.containers.ports import LogLine

_MAX_LINE = 16_384


class Pump:
    """Carries lines from reading threads to the event loop, waiting while its queue is full."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lines: "asyncio.Queue[LogLine | None]") -> None:
        self.closed = False
        self._loop = loop
        self._lines = lines

    def run(self, service: str, stream: Iterator[bytes]) -> None:
        """Carry one container's lines; None says that there are no more."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to tell
            for line in _lines(stream, service):
                if self.closed:
                    return
                self._put(line)
            self._put(None)

    def _put(self, line: LogLine | None) -> None:
        if not self.closed:
            asyncio.run_coroutine_threadsafe(self._lines.put(line), self._loop).result()


def _lines(stream: Iterator[bytes], service: str) -> Iterator[LogLine]:
    rest = b""
    with contextlib.suppress(requests.RequestException, OSError, ValueError):
        for piece in stream:
            *whole, rest = (rest + piece).split(b"\n")
            yield from (_line(one, service) for one in whole)
            if len(rest) > _MAX_LINE:
                yield _line(rest, service)
                rest = b""
    if rest:
        yield _line(rest, service)


def _line(raw: bytes, service: str) -> LogLine:
    stamp, _, text = raw.decode(errors="replace").partition(" ")
    try:
        # The engine writes nanoseconds, of which Python reads six digits.
        at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", stamp))
    except ValueError:
        at, text = datetime.now(UTC), f"{stamp} {text}".strip()
    return LogLine(service, at, text.rstrip("\r"))


def close_stream(stream: Any) -> None:
    with contextlib.suppress(Exception):  # whatever a half-closed socket says, it is closed then
        stream.close()
