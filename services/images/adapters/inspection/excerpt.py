"""What is kept of a file that passed by: its beginning, its end and its length."""

from dataclasses import dataclass

HEAD_BYTES = 65_536
TAIL_BYTES = 1024
SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Excerpt:
    """At most HEAD_BYTES and TAIL_BYTES of a file; they overlap if it is short."""

    head: bytes
    tail: bytes
    size_bytes: int

    @property
    def last_sector(self) -> bytes:
        return self.tail[-SECTOR_BYTES:]
