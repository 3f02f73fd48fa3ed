"""Uploads a made-up disk with tuspy as a process of its own, so that it can be killed; goes on where the server is.

Called as `tus_uploader.py SERVER TOKEN SIZE CHUNK_BYTES NOTES [UPLOAD]`; NOTES is a file that says, even after a kill,
where this process began and how many bytes it has sent: two 64-bit numbers.
"""

import hashlib
import mmap
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from tusclient.client import TusClient

BLOCK_BYTES = 1 << 20
_NOTES = struct.Struct("<QQ")
_BLOCK = random.Random(20_260_301).randbytes(BLOCK_BYTES - 8)  # noqa: S311 - the same in every process
METADATA = {"filename": "disk.img", "os_type": "Debian"}


def block(number: int) -> bytes:
    """The disk's block of that number: no two are alike, none bears a mark of any format."""
    return _BLOCK + number.to_bytes(8, "little")


def digests(size: int) -> tuple[str, str]:
    """SHA-256 and SHA-512 of the disk."""
    sha256, sha512 = hashlib.sha256(), hashlib.sha512()
    for number in range(size // BLOCK_BYTES):
        content = block(number)
        sha256.update(content)
        sha512.update(content)
    return sha256.hexdigest(), sha512.hexdigest()


def clear_notes(path: Path) -> None:
    path.write_bytes(bytes(_NOTES.size))


def read_notes(path: Path) -> tuple[int, int]:
    """Where the process began and how many bytes it has handed to its socket; nothing yet is (0, 0)."""
    start, sent = _NOTES.unpack(path.read_bytes())
    return start, sent


class Notes:
    """Numbers that outlive the process, because they lie in the page cache."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _NOTES.size)
        self.start = self.sent = 0

    def write(self) -> None:
        _NOTES.pack_into(self._memory, 0, self.start, self.sent)


class Part:
    """A stretch of the disk, made while it is sent and counted as it is taken."""

    def __init__(self, start: int, length: int, notes: Notes) -> None:
        self._position = start
        self._end = start + length
        self._notes = notes

    def __len__(self) -> int:
        return self._end - self._position

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(BLOCK_BYTES):
            yield piece

    def read(self, size: int) -> bytes:
        number, inside = divmod(self._position, BLOCK_BYTES)
        piece = block(number)[inside : inside + min(size, self._end - self._position)]
        self._position += len(piece)
        self._notes.sent += len(piece)
        self._notes.write()
        return piece


class Disk:
    """What tuspy takes for a file; `read` gives a part, which requests streams."""

    def __init__(self, size: int, notes: Notes) -> None:
        self._size = size
        self._notes = notes
        self._position = 0

    def seek(self, position: int, whence: int = 0) -> int:
        self._position = self._size if whence == 2 else position
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> Part:
        return Part(self._position, min(size, self._size - self._position), self._notes)


def main(server: str, token: str, size: int, chunk_bytes: int, notes_path: Path, url: str | None) -> None:
    notes = Notes(notes_path)
    client = TusClient(f"{server}/api/v1/uploads", headers={"authorization": f"Bearer {token}"})
    disk = Disk(size, notes)
    uploader = client.uploader(
        file_stream=disk, url=url and server + url, chunk_size=chunk_bytes, metadata=METADATA, retries=0
    )
    if url is None:
        uploader.set_url(uploader.create_url())
        sys.stdout.write(str(uploader.url).removeprefix(server) + "\n")
        sys.stdout.flush()
    notes.start = uploader.offset
    notes.write()
    uploader.upload()


if __name__ == "__main__":
    _, given_server, given_token, given_size, given_chunk, given_notes, *rest = sys.argv
    main(given_server, given_token, int(given_size), int(given_chunk), Path(given_notes), rest[0] if rest else None)
