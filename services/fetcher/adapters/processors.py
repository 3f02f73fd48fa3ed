"""What may be made of a picture, one strategy per kind; runs inside the decoder's process and imports as little.

A strategy takes the picture's file, its format and the step's options, and gives facts and, where it makes a file, the
file's extension and bytes. New kinds are added to `STRATEGIES` and to the schema of a job's options.
"""

import io
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from PIL import Image, ImageOps

MAX_RESULT_BYTES = 64_000_000
"""Of all that is made of one picture."""
_JPEG_KEPT = frozenset({0xE0, 0xE2, 0xEE})  # JFIF, colour profile, Adobe's colour transform
_PNG_DROPPED = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME"})
_WEBP_DROPPED = frozenset({b"EXIF", b"XMP "})
_WEBP_METADATA_FLAGS = 0x0C
_ORIENTATION = 0x0112
_DCT_SIDE, _HASH_SIDE = 32, 8
_EXTENSIONS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "GIF": ".gif",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "BMP": ".bmp",
    "TIFF": ".tiff",
}
Made = tuple[dict[str, Any], str | None, bytes | None]
"""Facts; the file's extension and bytes."""
Strategy = Callable[[BinaryIO, str, Mapping[str, Any]], Made]


class TooMuch(Exception):
    """The results of one picture are larger than allowed."""


def run(source: BinaryIO, name: str, steps: Sequence[Mapping[str, Any]]) -> Iterator[Made]:
    """Run the steps, each on the picture as it came; raises TooMuch, and whatever Pillow does."""
    size_bytes = 0
    for step in steps:
        source.seek(0)
        facts, extension, data = STRATEGIES[step["kind"]](source, name, step)
        size_bytes += len(data or b"")
        if size_bytes > MAX_RESULT_BYTES:
            raise TooMuch
        file = f"{step['name']}{extension}" if data is not None else None
        yield {"processor": step["name"], **facts}, file, data


def thumbnail(source: BinaryIO, name: str, step: Mapping[str, Any]) -> Made:
    """The upright picture inside a square of `size` pixels; never larger than it was."""
    side = step["size"]
    with Image.open(source, formats=[name]) as image:
        if name == "JPEG":
            image.draft("RGB", (side * 2, side * 2))
        upright = ImageOps.exif_transpose(image)
        upright.thumbnail((side, side), Image.Resampling.LANCZOS)
        return _encoded(upright, step.get("format") or _small_format(upright), step.get("quality"))


def resize(source: BinaryIO, name: str, step: Mapping[str, Any]) -> Made:
    """`inside` keeps the whole picture within width and height, `cover` fills them and crops, `exact` distorts."""
    with Image.open(source, formats=[name]) as image:
        upright = ImageOps.exif_transpose(image)
        width = step.get("width") or max(1, round(upright.width * step["height"] / upright.height))
        height = step.get("height") or max(1, round(upright.height * step["width"] / upright.width))
        plain = _plain(upright)
        if step["fit"] == "cover":
            result = ImageOps.fit(plain, (width, height), Image.Resampling.LANCZOS)
        elif step["fit"] == "exact":
            result = plain.resize((width, height), Image.Resampling.LANCZOS)
        else:
            result = plain.copy()
            result.thumbnail((width, height), Image.Resampling.LANCZOS)
        return _encoded(result, step.get("format") or _same_format(name), step.get("quality"))


def convert(source: BinaryIO, name: str, step: Mapping[str, Any]) -> Made:
    """The first frame in another format."""
    with Image.open(source, formats=[name]) as image:
        return _encoded(ImageOps.exif_transpose(image), step["format"], step.get("quality"))


def strip_exif(source: BinaryIO, name: str, _step: Mapping[str, Any]) -> Made:
    """Without EXIF, XMP, IPTC and comments: losslessly, unless the picture has to be turned upright or re-encoded."""
    with Image.open(source, formats=[name]) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        if turned or name in ("TIFF", "AVIF"):
            upright = ImageOps.exif_transpose(image)
            upright.info.pop("exif", None)
            upright.info.pop("xmp", None)
            facts, extension, data = _encoded(upright, _same_format(name), 95)
            return facts, extension, data
    source.seek(0)
    data = _LOSSLESS.get(name, bytes)(source.read())
    return _facts(name, width, height, data), _EXTENSIONS[name], data


def perceptual_hash(source: BinaryIO, name: str, step: Mapping[str, Any]) -> Made:
    """64 bits as hex: `dhash` compares neighbours, `ahash` with the mean, `phash` the lowest frequencies (DCT)."""
    algorithm = step["algorithm"]
    with Image.open(source, formats=[name]) as image:
        plain = ImageOps.exif_transpose(image).convert("RGB")
        if algorithm == "dhash":
            cells = _grey(plain, _HASH_SIDE + 1, _HASH_SIDE)
            bits = [row[at] < row[at + 1] for row in cells for at in range(_HASH_SIDE)]
        elif algorithm == "ahash":
            flat = [value for row in _grey(plain, _HASH_SIDE, _HASH_SIDE) for value in row]
            mean = sum(flat) / len(flat)
            bits = [value > mean for value in flat]
        else:
            waves = _low_frequencies(_grey(plain, _DCT_SIDE, _DCT_SIDE))
            median = sorted(waves[1:])[len(waves) // 2 - 1]
            bits = [value > median for value in waves]
    value = sum(bit << (63 - at) for at, bit in enumerate(bits))
    return {"algorithm": algorithm, "value": f"{value:016x}"}, None, None


STRATEGIES: Mapping[str, Strategy] = {
    "thumbnail": thumbnail,
    "resize": resize,
    "convert": convert,
    "strip_exif": strip_exif,
    "perceptual_hash": perceptual_hash,
}


def _encoded(image: Image.Image, name: str, quality: int | None) -> Made:
    plain = _plain(image, alpha=name not in ("JPEG", "BMP"))
    target = io.BytesIO()
    options: dict[str, Any] = {"quality": quality or 85} if name in ("JPEG", "WEBP", "AVIF") else {}
    profile = image.info.get("icc_profile")
    if profile and name in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF"):
        options["icc_profile"] = profile
    plain.save(target, name, **options)
    data = target.getvalue()
    return _facts(name, plain.width, plain.height, data), _EXTENSIONS[name], data


def _facts(name: str, width: int, height: int, data: bytes) -> dict[str, Any]:
    return {"format": name, "width": width, "height": height, "bytes": len(data)}


def _plain(image: Image.Image, *, alpha: bool = True) -> Image.Image:
    """Eight bits a channel; what cannot be seen through lies on white where the target knows no transparency."""
    if image.mode in ("RGB", "L"):
        return image
    see_through = "A" in image.getbands() or "transparency" in image.info
    if not see_through:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if alpha:
        return rgba
    ground = Image.new("RGB", rgba.size, (255, 255, 255))
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground


def _small_format(image: Image.Image) -> str:
    return "PNG" if "A" in image.getbands() or "transparency" in image.info else "JPEG"


def _same_format(name: str) -> str:
    return "PNG" if name in ("GIF", "BMP") else name


def _grey(image: Image.Image, width: int, height: int) -> list[list[int]]:
    cells = image.resize((width, height), Image.Resampling.BOX).convert("L").tobytes()
    return [list(cells[at : at + width]) for at in range(0, len(cells), width)]


def _low_frequencies(cells: Sequence[Sequence[int]]) -> list[float]:
    waves = [
        [math.cos(math.pi * (2 * x + 1) * u / (2 * _DCT_SIDE)) for x in range(_DCT_SIDE)] for u in range(_HASH_SIDE)
    ]
    rows = [[sum(map(float.__mul__, map(float, row), wave)) for wave in waves] for row in cells]
    return [sum(row[u] * wave[y] for y, row in enumerate(rows)) for wave in waves for u in range(_HASH_SIDE)]


def _strip_jpeg(data: bytes) -> bytes:
    """ISO/IEC 10918-1, B.1: drop APPn but the few that say how to show it, and comments, up to the first scan."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:  # noqa: PLR2004 - a marker's first byte
        marker = data[at + 1]
        if marker == 0xFF:  # noqa: PLR2004 - a fill byte
            at += 1
            continue
        if marker == 0xDA:  # noqa: PLR2004 - start of scan: the rest is the picture
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not ((0xE0 <= marker <= 0xEF and marker not in _JPEG_KEPT) or marker == 0xFE):  # noqa: PLR2004 - APPn, COM
            kept.append(data[at:end])
        at = end
    return b"".join((*kept, data[at:]))


def _strip_png(data: bytes) -> bytes:
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _PNG_DROPPED:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _strip_webp(data: bytes) -> bytes:
    kept, at = [], 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        chunk = data[at:end]
        if chunk[:4] == b"VP8X" and len(chunk) > 8:  # noqa: PLR2004 - a chunk's head
            chunk = chunk[:8] + bytes((chunk[8] & ~_WEBP_METADATA_FLAGS,)) + chunk[9:]
        if chunk[:4] not in _WEBP_DROPPED:
            kept.append(chunk)
        at = end
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


_LOSSLESS: Mapping[str, Callable[[bytes], bytes]] = {"JPEG": _strip_jpeg, "PNG": _strip_png, "WEBP": _strip_webp}
