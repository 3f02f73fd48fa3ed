"""Pixel formats of RFB (RFC 6143, 7.4): from the picture's few colours to the bytes that a client asked for."""

import struct
from dataclasses import dataclass

Colour = tuple[int, int, int]

_FORMAT = struct.Struct(">BBBBHHHBBB3x")
FORMAT_BYTES = _FORMAT.size


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """The wire's PIXEL_FORMAT, field by field."""

    bits: int = 32
    depth: int = 24
    big_endian: int = 0
    true_colour: int = 1
    red_max: int = 255
    green_max: int = 255
    blue_max: int = 255
    red_shift: int = 16
    green_shift: int = 8
    blue_shift: int = 0

    @classmethod
    def unpack(cls, data: bytes) -> "PixelFormat":
        """Read a client's format; raises ValueError for one that no server can serve."""
        found = cls(*_FORMAT.unpack(data))
        if found.bits not in {8, 16, 32}:
            raise ValueError(f"{found.bits} bits per pixel")
        return found if found.true_colour else COLOUR_MAP

    def pack(self) -> bytes:
        return _FORMAT.pack(
            self.bits, self.depth, self.big_endian, self.true_colour, self.red_max, self.green_max, self.blue_max,
            self.red_shift, self.green_shift, self.blue_shift,
        )  # fmt: skip

    def pixel(self, colour: Colour) -> bytes:
        red, green, blue = colour
        value = (red * self.red_max // 255) << self.red_shift
        value |= (green * self.green_max // 255) << self.green_shift
        value |= (blue * self.blue_max // 255) << self.blue_shift
        return (value & ((1 << self.bits) - 1)).to_bytes(self.bits // 8, "big" if self.big_endian else "little")

    def encode(self, indices: bytes, palette: tuple[Colour, ...]) -> bytes:
        """Pixels for indices into a palette; whole planes at a time, since one by one takes far too long."""
        pixels = [self.pixel(colour) for colour in palette]
        size = self.bits // 8
        if size == 1:
            return indices.translate(_table(pixels, 0))
        encoded = bytearray(len(indices) * size)
        for plane in range(size):
            encoded[plane::size] = indices.translate(_table(pixels, plane))
        return bytes(encoded)


COLOUR_MAP = PixelFormat(8, 8, 0, 0, 7, 7, 3, 0, 3, 6)
"""What a client without true colour gets: three bits of red and green, two of blue, through a colour map."""


def _table(pixels: list[bytes], plane: int) -> bytes:
    return bytes(pixel[plane] for pixel in pixels).ljust(256, b"\0")


def colour_map_entries() -> bytes:
    """The SetColourMapEntries message for `COLOUR_MAP`."""
    entries = b"".join(
        struct.pack(">HHH", (i & 7) * 65535 // 7, (i >> 3 & 7) * 65535 // 7, (i >> 6) * 65535 // 3) for i in range(256)
    )
    return struct.pack(">BxHH", 1, 0, 256) + entries
