"""Undoes gzip, xz and zstd while a file arrives, in steps of bounded output, and says what is wrong with a bad file.

Every format allows several members (streams, frames) one after another, which count as one file.
"""

import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, auto

import zstandard

from services.images.domain import Compression, human_size
from services.images.errors import CompressedFileDamaged
from services.images.ports import Decompressor

PIECE_BYTES = 1 << 20
"""No step gives more, whatever the ratio."""
MEMORY_BYTES = 128 << 20
"""What one file may need: the limit of `zstd -d` as it is called by default, twice what `xz -9` asks for."""


def decompressor_for(compression: Compression) -> Decompressor:
    """The decompressor of one file; its methods block and belong in a thread."""
    kinds: Mapping[Compression, Callable[[], Decompressor]] = {
        Compression.GZIP: _Gzip,
        Compression.XZ: _Xz,
        Compression.ZSTD: _Zstd,
    }
    return kinds[compression]()


class _Words:
    """What is said of a file that cannot be decompressed."""

    def __init__(self, name: str, extension: str) -> None:
        self._name = name
        self._extension = extension

    def foreign(self) -> CompressedFileDamaged:
        return CompressedFileDamaged(
            f"The file is not a {self._name} file, although its name ends in .{self._extension}; correct `filename`"
        )

    def damaged(self) -> CompressedFileDamaged:
        return CompressedFileDamaged(f"The {self._name} file is damaged; get it from another mirror")

    def cut_off(self) -> CompressedFileDamaged:
        return CompressedFileDamaged(f"The {self._name} file is cut off: it ends in the middle; get it anew")

    def followed(self) -> CompressedFileDamaged:
        return CompressedFileDamaged(f"Behind the end of the {self._name} file lies something that is none of it")

    def greedy(self) -> CompressedFileDamaged:
        return CompressedFileDamaged(
            f"The {self._name} file takes more than {human_size(MEMORY_BYTES)} of memory to decompress;"
            " compress it with a smaller dictionary or window"
        )


class _Gzip:
    """Members of RFC 1952; zeros between and behind them are padding, as gzip(1) has it."""

    def __init__(self) -> None:
        self._words = _Words("gzip", "gz")
        self._member: zlib._Decompress | None = None
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        more = bool(data)
        while more:
            if self._member is None:
                data = data.lstrip(b"\0") if self._begun else data
                if not data:
                    return
                if data[0] != 0x1F:  # noqa: PLR2004 - the first byte of every member
                    raise self._words.followed() if self._begun else self._words.foreign()
                self._member, self._begun = zlib.decompressobj(31), True  # 31: zlib's number for a gzip header
            try:
                piece = self._member.decompress(data, PIECE_BYTES)
            except zlib.error:
                raise self._words.damaged() from None
            if piece:
                yield piece
            if self._member.eof:
                data, self._member = self._member.unused_data, None
                more = bool(data)
            else:
                data = self._member.unconsumed_tail
                more = bool(data) or len(piece) == PIECE_BYTES  # a full step may leave output inside zlib

    def finish(self) -> None:
        if self._member is not None or not self._begun:
            raise self._words.cut_off()


class _Xz:
    """Streams of the .xz format, 2.1; zeros between and behind them are its Stream Padding."""

    def __init__(self) -> None:
        self._words = _Words("xz", "xz")
        self._stream: lzma.LZMADecompressor | None = None
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._stream is None:
                data = data.lstrip(b"\0") if self._begun else data
                if not data:
                    return
                if data[0] != 0xFD:  # noqa: PLR2004 - the first byte of every stream
                    raise self._words.followed() if self._begun else self._words.foreign()
                self._stream, self._begun = lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY_BYTES), True
            try:
                piece = self._stream.decompress(data, PIECE_BYTES)
            except lzma.LZMAError as error:
                raise self._words.greedy() if "limit" in str(error) else self._words.damaged() from None
            data = b""  # the stream keeps what it has not worked on yet
            if piece:
                yield piece
            if self._stream.eof:
                data, self._stream = self._stream.unused_data, None
            elif self._stream.needs_input:
                return

    def finish(self) -> None:
        if self._stream is not None or not self._begun:
            raise self._words.cut_off()


class _Next(Enum):
    """What a zstd file goes on with."""

    FRAME = auto()
    BLOCK = auto()
    CHECKSUM = auto()
    SKIPPED = auto()


_FRAME_MAGIC = 0xFD2FB528
_SKIPPABLE_MAGIC, _SKIPPABLE_MASK = 0x184D2A50, 0xFFFFFFF0
_FIRST_BYTES = frozenset({0x28, *range(0x50, 0x60)})
_MAGIC_BYTES, _BLOCK_HEAD_BYTES, _CHECKSUM_BYTES, _SKIPPABLE_HEAD_BYTES = 4, 3, 4, 8
_RAW, _RLE, _COMPRESSED, _RESERVED = range(4)
_BLOCK_MAX_BYTES = 128 << 10
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)
_DICTIONARY_ID_BYTES = (0, 1, 2, 4)


class _Zstd:
    """Frames of RFC 8878.

    The library gives all that its input holds at once, and 4 bytes may hold 128 KiB: so the input is cut at its blocks
    and given to it as many at a time as fit into a piece.
    """

    def __init__(self) -> None:
        self._words = _Words("zstd", "zst")
        self._object = zstandard.ZstdDecompressor(max_window_size=MEMORY_BYTES).decompressobj(read_across_frames=True)
        self._held = bytearray()
        self._next = _Next.FRAME
        self._begun = False
        self._has_checksum = False
        self._to_skip = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._held += data
        start = end = output_bytes = 0
        while (unit := self._unit(end)) is not None:
            unit_bytes, gives_bytes = unit
            if output_bytes + gives_bytes > PIECE_BYTES:
                yield from self._decompressed(start, end)
                start, output_bytes = end, 0
            end += unit_bytes
            output_bytes += gives_bytes
        yield from self._decompressed(start, end)
        del self._held[:end]

    def finish(self) -> None:
        if self._held or self._next is not _Next.FRAME or not self._begun:
            raise self._words.cut_off()

    def _decompressed(self, start: int, end: int) -> Iterator[bytes]:
        try:
            piece = self._object.decompress(bytes(self._held[start:end]))
        except zstandard.ZstdError as error:
            raise self._words.greedy() if "too much memory" in str(error) else self._words.damaged() from None
        if piece:
            yield piece

    def _unit(self, at: int) -> tuple[int, int] | None:
        """The next part of the file: its bytes, and how many come out of it at most; None if it is not whole yet."""
        left = len(self._held) - at
        if self._next is _Next.BLOCK:
            return self._block(at, left)
        if self._next is _Next.FRAME:
            return self._frame(at, left)
        if self._next is _Next.SKIPPED:
            taken = min(left, self._to_skip)
            self._to_skip -= taken
            if self._to_skip == 0:
                self._next = _Next.FRAME
            return (taken, 0) if taken else None
        if left < _CHECKSUM_BYTES:
            return None
        self._next = _Next.FRAME
        return _CHECKSUM_BYTES, 0

    def _frame(self, at: int, left: int) -> tuple[int, int] | None:
        """Section 3.1.1.1 and 3.1.2: a frame's header."""
        if left and self._held[at] not in _FIRST_BYTES:
            raise self._stray()
        if left < _MAGIC_BYTES:
            return None
        magic = self._number(at, _MAGIC_BYTES)
        if magic & _SKIPPABLE_MASK == _SKIPPABLE_MAGIC:
            if left < _SKIPPABLE_HEAD_BYTES:
                return None
            self._to_skip = self._number(at + _MAGIC_BYTES, 4)
            self._next, self._begun = _Next.SKIPPED if self._to_skip else _Next.FRAME, True
            return _SKIPPABLE_HEAD_BYTES, 0
        if magic != _FRAME_MAGIC:
            raise self._stray()
        if left == _MAGIC_BYTES:
            return None
        descriptor = self._held[at + _MAGIC_BYTES]
        single_segment = bool(descriptor & 0x20)
        size_bytes = _CONTENT_SIZE_BYTES[descriptor >> 6] or int(single_segment)
        header_bytes = _MAGIC_BYTES + 1 + (not single_segment) + _DICTIONARY_ID_BYTES[descriptor & 3] + size_bytes
        if left < header_bytes:
            return None
        self._has_checksum = bool(descriptor & 0x04)
        self._next, self._begun = _Next.BLOCK, True
        return header_bytes, 0

    def _block(self, at: int, left: int) -> tuple[int, int] | None:
        """Section 3.1.1.2."""
        if left < _BLOCK_HEAD_BYTES:
            return None
        head = self._number(at, _BLOCK_HEAD_BYTES)
        is_last, kind, size_bytes = head & 1, head >> 1 & 3, head >> 3
        if kind == _RESERVED or size_bytes > _BLOCK_MAX_BYTES:
            raise self._words.damaged()
        block_bytes = _BLOCK_HEAD_BYTES + (1 if kind == _RLE else size_bytes)
        if left < block_bytes:
            return None
        if is_last:
            self._next = _Next.CHECKSUM if self._has_checksum else _Next.FRAME
        return block_bytes, _BLOCK_MAX_BYTES if kind == _COMPRESSED else size_bytes

    def _stray(self) -> CompressedFileDamaged:
        return self._words.followed() if self._begun else self._words.foreign()

    def _number(self, at: int, count: int) -> int:
        return int.from_bytes(self._held[at : at + count], "little")
