import pytest

from libs.pvesim.console.display import key_label
from libs.pvesim.console.pixels import COLOUR_MAP, PixelFormat, colour_map_entries
from libs.pvesim.console.rfb import vnc_response

PALETTE = ((255, 0, 0), (0, 255, 0), (16, 32, 64))


def test_pixels_are_laid_out_as_asked() -> None:
    assert PixelFormat().encode(b"\0\2", PALETTE) == b"\x00\x00\xff\x00" + b"\x40\x20\x10\x00"
    big = PixelFormat(big_endian=1)
    assert big.encode(b"\1", PALETTE) == b"\x00\x00\xff\x00"
    five_six_five = PixelFormat(16, 16, 0, 1, 31, 63, 31, 11, 5, 0)
    assert five_six_five.encode(b"\0\1", PALETTE) == b"\x00\xf8" + b"\xe0\x07"


def test_a_format_survives_its_way_over_the_wire_and_an_impossible_one_does_not() -> None:
    assert PixelFormat.unpack(PixelFormat().pack()) == PixelFormat()
    with pytest.raises(ValueError, match="24 bits"):
        PixelFormat.unpack(PixelFormat(bits=24).pack())


def test_clients_without_true_colour_get_a_map_that_matches_the_pixels() -> None:
    assert PixelFormat.unpack(PixelFormat(8, 8, 0, 0).pack()) is COLOUR_MAP
    entries = colour_map_entries()[6:]
    (pixel,) = COLOUR_MAP.encode(b"\0", PALETTE)
    assert entries[6 * pixel : 6 * pixel + 6] == b"\xff\xff\0\0\0\0"


def test_the_answer_to_a_challenge_uses_eight_characters() -> None:
    challenge = bytes(range(16))
    assert vnc_response(challenge, "12345678") == vnc_response(challenge, "123456789")
    assert vnc_response(challenge, "12345678") != vnc_response(challenge, "1234567")


@pytest.mark.parametrize(
    ("keysym", "label"), [(0x61, "a"), (0xFF0D, "Enter"), (0x20, "Space"), (0x1008FF13, "0x1008ff13")]
)
def test_keys_have_names(keysym: int, label: str) -> None:
    assert key_label(keysym) == label
