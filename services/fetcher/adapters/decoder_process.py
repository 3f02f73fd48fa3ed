"""The program of a decoder process: reads pictures from stdin, decodes every frame, answers one JSON each.

It runs alone (`python -I decoder_process.py`), under limits of memory, so that a hostile picture harms nothing else.
A request is a 4-byte length and JSON `{"size_bytes", "file", "check", "steps"}`, then the body unless `file` names it;
an answer is a length and JSON too, then the files that the steps made, one after another. Requests may be sent ahead
of their answers, which come in the same order.
"""

import importlib.util
import io
import json
import resource
import struct
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from PIL import Image

_EXTENSIONS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "GIF": ".gif",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "BMP": ".bmp",
    "TIFF": ".tiff",
}
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
_HASH_SIDE = 8
_LEAST_SIDE = 32
_ALL_FRAMES_FACTOR = 5


class Refused(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def sniff(head: bytes) -> str | None:
    """The format that the first bytes tell, whatever the server called it; None if it is none of ours."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        box_bytes = int.from_bytes(head[:4], "big")
        brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(box_bytes, len(head)), 4))]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
    return None


def inspect(source: BinaryIO, *, max_pixels: int, max_frames: int, decode: bool = True) -> dict[str, Any]:
    """Decode all frames, or only read what the header says of the first; raises Refused."""
    head = source.read(512)
    source.seek(0)
    name = sniff(head)
    if name is None:
        raise Refused("not-a-picture", f"The body is {_what(head)}, not a picture of a known format.")
    try:
        with Image.open(source, formats=[name]) as image:
            width, height = image.size
            perceptual_hash = _decode(image, max_pixels=max_pixels, max_frames=max_frames, decode=decode)
    except Refused:
        raise
    except MemoryError:
        raise Refused("pixels-too-many", "Decoding the picture takes too much memory.") from None
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise whatever damaged data leads them to
        raise Refused("picture-damaged", f"The picture cannot be decoded ({type(error).__name__}).") from None
    return {
        "format": name,
        "extension": _EXTENSIONS[name],
        "width": width,
        "height": height,
        "perceptual_hash": perceptual_hash,
    }


def _decode(image: Image.Image, *, max_pixels: int, max_frames: int, decode: bool) -> str | None:
    """Load every frame under the caps; gives the first one's hash. Not to `decode` checks the first one's size only."""
    all_pixels = 0
    perceptual_hash = ""
    frame = 0
    while True:
        pixels = image.width * image.height
        all_pixels += pixels
        if pixels > max_pixels or all_pixels > max_pixels * _ALL_FRAMES_FACTOR:
            raise Refused("pixels-too-many", f"The picture has more than {max_pixels} pixels, or all its frames do.")
        if not decode:
            return None
        if frame == 0 and image.format == "JPEG":
            # All its data is read all the same; only the inverse transform, which cannot fail, makes fewer pixels,
            # and of those the brightness alone: the hash needs no more.
            mode = "L" if image.mode == "RGB" else image.mode
            image.draft(mode, (max(_LEAST_SIDE, image.width // 8), max(_LEAST_SIDE, image.height // 8)))
        image.load()
        if frame == 0:
            perceptual_hash = difference_hash(image)
        frame += 1
        try:
            image.seek(frame)
        except EOFError:
            return perceptual_hash
        if frame >= max_frames:
            raise Refused("frames-too-many", f"The picture has more than {max_frames} frames.")


def difference_hash(image: Image.Image) -> str:
    """64 bits as hex: whether each cell of an 8x8 grid is darker than its right neighbour (dHash)."""
    plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
    small = plain.resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX).convert("L").tobytes()
    bits = 0
    for row in range(_HASH_SIDE):
        for column in range(_HASH_SIDE):
            at = row * (_HASH_SIDE + 1) + column
            bits = bits << 1 | (small[at] < small[at + 1])
    return f"{bits:016x}"


def _what(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "empty"
    if b"<svg" in text:
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML"
    return "something else"


def process(source: BinaryIO, name: str, steps: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Run processors on a picture that passed; raises Refused."""
    results, files = [], []
    processors = _processors()
    try:
        for facts, file, data in processors.run(source, name, steps):
            results.append({"name": file, "facts": facts, "size_bytes": len(data or b"")})
            files.append(data or b"")
    except (MemoryError, processors.TooMuch):
        raise Refused("processing-too-large", "What was to be made of the picture is too large.") from None
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise whatever damaged data leads them to
        raise Refused("processing-failed", f"The picture could not be processed ({type(error).__name__}).") from None
    return results, files


def _processors() -> ModuleType:
    """The module beside this one, which is not on the path of a program that runs alone."""
    known = sys.modules.get("telar_processors")
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location("telar_processors", Path(__file__).with_name("processors.py"))
    if spec is None or spec.loader is None:
        raise ImportError("processors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["telar_processors"] = module
    return module


def _answer(
    request: dict[str, Any], data: bytes, *, max_pixels: int, max_frames: int
) -> tuple[dict[str, Any], list[bytes]]:
    try:
        with io.BytesIO(data) if request["file"] is None else Path(request["file"]).open("rb") as source:
            decode = request["check"] == "full"
            answer = inspect(source, max_pixels=max_pixels, max_frames=max_frames, decode=decode)
            if not request["steps"]:
                return answer, []
            results, files = process(source, answer["format"], request["steps"])
            return {**answer, "results": results}, files
    except Refused as refused:
        return {"reason": refused.reason, "detail": refused.detail}, []


def main(max_pixels: int, max_frames: int) -> None:
    """Serve until stdin ends, which it also does when the parent is killed."""
    memory_bytes = max_pixels * 16 + 512 * 1024 * 1024  # four bytes a pixel, for the frame, its canvas and copies
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # our own cap is checked before anything is decoded
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while prefix := source.read(4):
        request = json.loads(source.read(struct.unpack(">I", prefix)[0]))
        data = source.read(request["size_bytes"]) if request["file"] is None else b""
        found, files = _answer(request, data, max_pixels=max_pixels, max_frames=max_frames)
        answer = json.dumps(found).encode()
        target.write(b"".join((struct.pack(">I", len(answer)), answer, *files)))
        target.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
