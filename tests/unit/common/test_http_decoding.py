"""Bodies that came compressed although nobody asked."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.http import BodyTooLarge, ExchangeFailed, Reason
from libs.common.http.decoding import Decoder, decoder_for


def decode(encoding: str, pieces: list[bytes], cap: int = 10_000_000) -> bytes:
    decoder = Decoder(encoding, max_decoded_bytes=cap)
    decoded = b"".join(out for piece in pieces for out in decoder.feed(piece))
    decoder.finish()
    return decoded


@given(st.binary(max_size=3000), st.integers(1, 500), st.integers(0, 900))
def test_any_cut_of_a_compressed_body_decodes_to_the_same_bytes(body: bytes, step: int, repeat: int) -> None:
    plain = body * repeat
    for encoding, packed in (("gzip", gzip.compress(plain)), ("deflate", zlib.compress(plain))):
        pieces = [packed[at : at + step] for at in range(0, len(packed), step)]
        assert decode(encoding, pieces) == plain


def test_a_bomb_stops_at_the_cap_and_never_yields_a_large_piece() -> None:
    bomb = gzip.compress(bytes(200_000_000), compresslevel=9)
    decoder = Decoder("gzip", max_decoded_bytes=5_000_000)
    sizes: list[int] = []
    with pytest.raises(BodyTooLarge) as refused:
        sizes.extend(len(piece) for piece in decoder.feed(bomb))
    assert refused.value.reason is Reason.DECODED_TOO_LARGE
    assert sum(sizes) <= 5_000_000
    assert max(sizes) <= 262_144


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b"x" + b, lambda b: b + b"tail", lambda b: b[:-1]])
def test_a_damaged_body_is_an_error(damage) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 - one of four lambdas
    with pytest.raises(ExchangeFailed) as failed:
        decode("gzip", [damage(gzip.compress(b"hello" * 100))])
    assert failed.value.reason is Reason.ENCODING_INVALID


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "nonsense"])
def test_other_and_stacked_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(ExchangeFailed) as failed:
        decoder_for({"content-encoding": encoding}, max_decoded_bytes=1)
    assert failed.value.reason is Reason.ENCODING_REFUSED


def test_identity_needs_no_decoder() -> None:
    assert decoder_for({}, max_decoded_bytes=1) is None
    assert decoder_for({"content-encoding": "Identity"}, max_decoded_bytes=1) is None
