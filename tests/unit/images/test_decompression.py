import gzip
import lzma
import os
import resource
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.testing.needs import require_program
from services.images.adapters.decompression import MEMORY_BYTES, PIECE_BYTES, decompressor_for
from services.images.domain import Compression
from services.images.errors import CompressedFileDamaged

KIB, MIB = 1 << 10, 1 << 20
ALL = list(Compression)


def packed(compression: Compression, content: bytes) -> bytes:
    if compression is Compression.GZIP:
        return gzip.compress(content, 1)
    if compression is Compression.XZ:
        return lzma.compress(content, preset=0)
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def pieces(compression: Compression, data: bytes, block_bytes: int = 64 * KIB) -> Iterator[bytes]:
    decompressor = decompressor_for(compression)
    for start in range(0, len(data), block_bytes):
        yield from decompressor.feed(data[start : start + block_bytes])
    decompressor.finish()


def unpacked(compression: Compression, data: bytes, block_bytes: int = 64 * KIB) -> bytes:
    return b"".join(pieces(compression, data, block_bytes))


def refusal(compression: Compression, data: bytes) -> str:
    with pytest.raises(CompressedFileDamaged) as refused:
        unpacked(compression, data)
    return refused.value.detail


MIXED = os.urandom(300_000) + bytes(5 * MIB) + os.urandom(100) + b"telar" * 50_000


@pytest.mark.parametrize("block_bytes", [1, 7, 4096, MIB])
@pytest.mark.parametrize("compression", ALL)
def test_a_file_comes_out_as_it_went_in_however_it_is_cut(compression: Compression, block_bytes: int) -> None:
    content = MIXED if block_bytes > 7 else MIXED[299_000:302_000]
    assert unpacked(compression, packed(compression, content), block_bytes) == content


@pytest.mark.parametrize("compression", ALL)
def test_several_members_are_one_file(compression: Compression) -> None:
    parts = [os.urandom(70_000), b"", bytes(MIB), b"end"]
    data = b"".join(packed(compression, part) for part in parts)
    for block_bytes in (1 if len(data) < 100_000 else 13, len(data)):
        assert unpacked(compression, data, block_bytes) == b"".join(parts)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=400), min_size=1, max_size=5), st.integers(1, 50), st.sampled_from(ALL))
def test_any_members_cut_anywhere_are_one_file(parts: list[bytes], block_bytes: int, compression: Compression) -> None:
    data = b"".join(packed(compression, part) for part in parts)
    assert unpacked(compression, data, block_bytes) == b"".join(parts)


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.XZ])
def test_zeros_behind_the_end_are_padding(compression: Compression) -> None:
    data = packed(compression, b"one") + bytes(512) + packed(compression, b"two") + bytes(1024)
    assert unpacked(compression, data, 100) == b"onetwo"


def test_skippable_frames_of_zstd_hold_nothing() -> None:
    def skippable(content: bytes) -> bytes:
        return (0x184D2A53).to_bytes(4, "little") + len(content).to_bytes(4, "little") + content

    one, two = (packed(Compression.ZSTD, part) for part in (b"one", b"two"))
    data = skippable(b"") + one + skippable(b"note" * 1000) + two + skippable(b"x")
    for block_bytes in (1, 5, len(data)):
        assert unpacked(Compression.ZSTD, data, block_bytes) == b"onetwo"
    assert "cut off" in refusal(Compression.ZSTD, one + skippable(b"note")[:-1])


@pytest.mark.parametrize("compression", ALL)
def test_what_ends_in_the_middle_is_called_cut_off(compression: Compression) -> None:
    data = packed(compression, os.urandom(50_000))
    for left in (0, 1, 3, 5, 12, len(data) // 2, len(data) - 1):
        assert "cut off" in refusal(compression, data[:left])


@pytest.mark.parametrize("compression", ALL)
def test_what_follows_the_end_is_refused(compression: Compression) -> None:
    data = packed(compression, b"telar" * 100)
    for garbage in (b"x", b"<html>", bytes(1) + b"garbage" if compression is not Compression.ZSTD else bytes(512)):
        assert "Behind the end" in refusal(compression, data + garbage)


@pytest.mark.parametrize("compression", ALL)
def test_another_file_is_called_by_what_it_is_not(compression: Compression) -> None:
    assert "is not a" in refusal(compression, b"<!doctype html><title>404</title>" * 10)
    assert f".{compression}" in refusal(compression, bytes(1000))


@pytest.mark.parametrize("compression", ALL)
def test_a_damaged_file_is_called_damaged(compression: Compression) -> None:
    data = bytearray(packed(compression, os.urandom(200_000)))
    data[len(data) // 2] ^= 0xFF  # found by the checksum of the format at the latest
    assert "is damaged" in refusal(compression, bytes(data))


def zstd_bomb(blocks: int) -> bytes:
    """RLE blocks of RFC 8878: four bytes for 128 KiB of zeros each."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0x58])  # a window of 2 MiB, no content size, no checksum
    block = ((128 * KIB) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    return head + block * blocks + (1).to_bytes(3, "little")


@pytest.mark.parametrize("compression", ALL)
def test_a_bomb_comes_out_in_small_pieces(compression: Compression) -> None:
    size = 256 * MIB
    bomb = zstd_bomb(size // (128 * KIB)) if compression is Compression.ZSTD else packed(compression, bytes(size))
    assert len(bomb) < size // 200
    seen = 0
    tracemalloc.start()
    try:
        for piece in pieces(compression, bomb, MIB):
            assert len(piece) <= PIECE_BYTES
            seen += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == size
    assert peak < 16 * MIB


def test_a_window_or_dictionary_beyond_the_limit_is_refused_with_the_limit() -> None:
    content = os.urandom(100_000)
    greedy_xz = lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2 * MEMORY_BYTES}])
    assert "134.2 MB" in refusal(Compression.XZ, greedy_xz)
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    greedy_zstd = compressor.compress(content) + compressor.flush()
    assert "134.2 MB" in refusal(Compression.ZSTD, greedy_zstd)


def test_what_the_usual_tools_write_at_their_strongest_is_read(tmp_path: Path) -> None:
    content = tmp_path / "disk.img"
    content.write_bytes(MIXED)
    commands = {
        Compression.GZIP: ("gzip", "-9", "-k", "-c"),
        Compression.XZ: ("xz", "-9e", "-T2", "-k", "-c"),
        Compression.ZSTD: ("zstd", "--ultra", "-22", "-q", "-c"),
    }
    for compression, command in commands.items():
        require_program(command[0], package=f"{command[0]}-utils" if command[0] == "xz" else command[0])
        made = subprocess.run([*command, str(content)], check=True, capture_output=True, timeout=60).stdout
        assert unpacked(compression, made) == MIXED


def test_empty_blocks_and_members_without_end_are_worked_off_quickly() -> None:
    empty = (0).to_bytes(3, "little")  # a raw block of no bytes, not the last
    data = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0x58]) + empty * 300_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    decompressor = decompressor_for(Compression.ZSTD)
    assert b"".join(decompressor.feed(data)) == b""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 5
