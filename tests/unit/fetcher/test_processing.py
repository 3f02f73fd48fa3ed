"""What is made of pictures, in the decoder's process."""

import hashlib
import io
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from services.fetcher.adapters import processors
from services.fetcher.adapters.decoders import DecoderPool
from services.fetcher.domain import processing
from services.fetcher.domain.jobs import Check
from services.fetcher.errors import ProcessingRefused
from services.fetcher.ports import Body, Picture


@pytest.fixture
async def pool() -> AsyncIterator[DecoderPool]:
    made = DecoderPool(processes=1, max_pixels=1_000_000, max_frames=10, timeout_s=20)
    yield made
    await made.close()


def gradient(size: tuple[int, int] = (80, 60)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


def blobs(seed: int) -> Image.Image:
    """Something like a photograph: large smooth shapes, other ones for each seed."""
    noise = random.Random(seed)  # noqa: S311 - noise, not a secret
    return Image.frombytes("RGB", (7, 6), noise.randbytes(126)).resize((200, 150), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, name, **options)
    return target.getvalue()


async def made(pool: DecoderPool, data: bytes, *steps: dict[str, Any], check: Check = Check.FULL) -> Picture:
    body = Body(data, None, len(data), hashlib.sha256(data).hexdigest())
    return await pool.inspect(body, check, processing.named(steps))


def opened(data: bytes | None) -> Image.Image:
    assert data
    return Image.open(io.BytesIO(data))


async def test_each_step_makes_its_file_with_its_facts(pool: DecoderPool) -> None:
    picture = await made(
        pool,
        encoded(gradient(), "JPEG"),
        {"kind": "thumbnail", "size": 32},
        {"kind": "resize", "width": 40, "height": 40, "fit": "cover"},
        {"kind": "resize", "height": 30, "fit": "inside"},
        {"kind": "resize", "width": 10, "height": 50, "fit": "exact", "format": "PNG"},
        {"kind": "convert", "format": "WEBP"},
    )
    facts = [(result.name, *opened(result.data).size, opened(result.data).format) for result in picture.results]
    assert facts == [
        ("thumbnail-32.jpg", 32, 24, "JPEG"),
        ("cover-40x40.jpg", 40, 40, "JPEG"),
        ("inside-autox30.jpg", 40, 30, "JPEG"),
        ("exact-10x50.png", 10, 50, "PNG"),
        ("as-webp.webp", 80, 60, "WEBP"),
    ]
    first = picture.results[0]
    assert first.facts == {
        "processor": "thumbnail-32",
        "format": "JPEG",
        "width": 32,
        "height": 24,
        "bytes": len(first.data or b""),
    }


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF"])
async def test_every_format_can_be_processed(pool: DecoderPool, name: str) -> None:
    steps: list[dict[str, Any]] = [{"kind": "thumbnail", "size": 16}, {"kind": "strip_exif"}]
    steps += [{"kind": "convert", "format": other} for other in ("JPEG", "PNG", "WEBP", "AVIF")]
    picture = await made(pool, encoded(gradient(), name), *steps, check=Check.HEADER)
    assert [opened(result.data).size for result in picture.results] == [(16, 12)] + [(80, 60)] * 5


async def test_transparency_lies_on_white_where_the_target_has_none(pool: DecoderPool) -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    picture = await made(
        pool, encoded(clear, "PNG"), {"kind": "convert", "format": "JPEG"}, {"kind": "thumbnail", "size": 16}
    )
    assert opened(picture.results[0].data).getpixel((4, 4)) == (255, 255, 255)
    assert opened(picture.results[1].data).mode == "RGBA"


async def test_what_a_camera_wrote_is_stripped_and_the_picture_stays_upright(pool: DecoderPool) -> None:
    exif = Image.Exif()
    exif[0x010E] = "SECRET PLACE"
    plain = encoded(gradient(), "JPEG", exif=exif, comment=b"SECRET NOTE")
    note = PngInfo()
    note.add_text("Comment", "SECRET NOTE")
    turned = Image.Exif()
    turned[0x0112] = 6
    turned[0x010E] = "SECRET PLACE"
    for data, size in (
        (plain, (80, 60)),
        (encoded(gradient(), "PNG", exif=exif, pnginfo=note), (80, 60)),
        (encoded(gradient(), "WEBP", exif=exif), (80, 60)),
        (encoded(gradient(), "JPEG", exif=turned), (60, 80)),
        (encoded(gradient(), "TIFF", exif=exif), (80, 60)),
    ):
        assert b"SECRET" in data
        (result,) = (await made(pool, data, {"kind": "strip_exif"})).results
        assert b"SECRET" not in (result.data or b"")
        stripped = opened(result.data)
        assert stripped.size == size
        assert 0x010E not in stripped.getexif()
    (result,) = (await made(pool, plain, {"kind": "strip_exif"})).results
    assert opened(result.data).tobytes() == opened(plain).tobytes()


async def test_hashes_of_alike_pictures_are_near_and_of_others_far(pool: DecoderPool) -> None:
    steps = [{"kind": "perceptual_hash", "algorithm": name} for name in ("dhash", "ahash", "phash")]
    image = blobs(1)
    same = encoded(image.resize((90, 90)), "JPEG", quality=40)
    other = encoded(blobs(2), "PNG")
    hashes = [
        [int(result.facts["value"], 16) for result in (await made(pool, data, *steps)).results]
        for data in (encoded(image, "PNG"), same, other)
    ]
    for first, alike, different in zip(*hashes, strict=True):
        assert (first ^ alike).bit_count() <= 8
        assert (first ^ different).bit_count() > 12


async def test_a_picture_that_is_refused_is_not_processed_and_the_next_one_is_served(pool: DecoderPool) -> None:
    step = {"kind": "thumbnail", "size": 16}
    with pytest.raises(Exception, match="not-a-picture"):
        await made(pool, b"<html>", step)
    assert len((await made(pool, encoded(gradient(), "PNG"), step)).results) == 1


def test_results_have_a_bound_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "MAX_RESULT_BYTES", 500)
    steps = processing.named([{"kind": "convert", "format": "PNG"}, {"kind": "thumbnail", "size": 64}])
    with pytest.raises(processors.TooMuch):
        list(processors.run(io.BytesIO(encoded(gradient(), "PNG")), "PNG", steps))


def test_two_steps_of_one_name_are_refused() -> None:
    with pytest.raises(ProcessingRefused) as refused:
        processing.named([{"kind": "strip_exif"}, {"kind": "thumbnail", "size": 64}, {"kind": "strip_exif"}])
    assert refused.value.errors[0].pointer == "/options/process/2"
