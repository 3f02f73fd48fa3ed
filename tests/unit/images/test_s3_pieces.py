import pytest

from libs.common.ids import uuid7
from services.images.adapters.s3_blobs.access import READ_BYTES, Range
from services.images.adapters.s3_blobs.pieces import Piece, chain, piece_key
from services.images.adapters.s3_blobs.store import part_bytes
from services.images.errors import StagedBytesLost

TIB = 1 << 40


def pieces(*bounds: tuple[int, int]) -> list[Piece]:
    return [Piece(f"{start}-{end}", start, end) for start, end in bounds]


def test_a_chain_is_followed_from_piece_to_piece() -> None:
    found = pieces((0, 10), (10, 12), (12, 30))
    assert list(chain(found, 0, 30)) == [Range("0-10", 0, 10), Range("10-12", 0, 2), Range("12-30", 0, 18)]
    assert list(chain(found, 11, 5)) == [Range("10-12", 1, 2), Range("12-30", 0, 4)]
    assert list(chain(found, 0, 0)) == []


def test_what_is_no_link_of_the_chain_is_passed_over() -> None:
    assert list(chain(pieces((0, 10), (5, 25), (10, 20)), 0, 20)) == [Range("0-10", 0, 10), Range("10-20", 0, 10)]


@pytest.mark.parametrize("bounds", [(), ((1, 20),), ((0, 10),), ((0, 10), (11, 20)), ((0, 10), (10, 10), (10, 10))])
def test_a_gap_is_told(bounds: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(StagedBytesLost):
        list(chain(pieces(*bounds), 0, 20))


def test_keys_of_pieces_sort_as_their_offsets_do() -> None:
    upload_id = uuid7()
    offsets = [0, 9, 10, 99, 1 << 30, 20 * TIB]
    assert sorted(piece_key(upload_id, offset) for offset in offsets) == [
        piece_key(upload_id, offset) for offset in offsets
    ]


def test_ranges_are_read_in_bounded_parts() -> None:
    parts = list(Range("key", 5, 2 * READ_BYTES + 6).split())
    assert [part.end - part.start for part in parts] == [READ_BYTES, READ_BYTES, 1]
    assert (parts[0].start, parts[-1].end) == (5, 2 * READ_BYTES + 6)


@pytest.mark.parametrize("max_file_bytes", [1, 20 << 30, TIB, 5 * TIB])
def test_the_longest_file_fits_into_the_parts_that_s3_takes(max_file_bytes: int) -> None:
    length = part_bytes(max_file_bytes)
    assert length >= 5 << 20  # S3's least
    assert -(-max_file_bytes // length) <= 10_000  # S3's most
