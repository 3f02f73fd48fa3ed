"""What the decoder processes accept and refuse."""

import hashlib
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from services.fetcher.adapters import decoder_process
from services.fetcher.adapters.decoders import DecoderPool
from services.fetcher.adapters.web import retry_after_s
from services.fetcher.ports import Body, PictureRefused


def encoded(name: str, size: tuple[int, int] = (32, 24), *, frames: int = 1, **options: Any) -> bytes:
    images = [Image.new("RGB", size, (number * 5 % 256, 80, 160)) for number in range(frames)]
    target = io.BytesIO()
    more: dict[str, Any] = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(target, name, **options, **more)
    return target.getvalue()


def body(data: bytes) -> Body:
    return Body(data, None, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
async def pool() -> AsyncIterator[DecoderPool]:
    made = DecoderPool(processes=1, max_pixels=1_000_000, max_frames=10, timeout_s=20)
    yield made
    await made.close()


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF"])
async def test_each_format_is_told_by_its_bytes(pool: DecoderPool, name: str) -> None:
    picture = await pool.inspect(body(encoded(name)))
    assert (picture.format, picture.width, picture.height) == (name, 32, 24)


async def test_what_is_no_picture_is_refused_and_named(pool: DecoderPool) -> None:
    refused = [
        (b"", "not-a-picture", "empty"),
        (b'<?xml version="1.0"?>\n<svg onload="x()"/>', "not-a-picture", "SVG"),
        (b"<!DOCTYPE html><html>", "not-a-picture", "HTML"),
        (b"GIF", "not-a-picture", "something else"),
        (b"%!PS-Adobe-3.0 EPSF", "not-a-picture", "something else"),
        (encoded("ICO"), "not-a-picture", "something else"),
        (encoded("PNG")[:60], "picture-damaged", ""),
        (encoded("JPEG", (200, 200))[:-300], "picture-damaged", ""),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 100, "picture-damaged", ""),
        (encoded("PNG", (1001, 1000)), "pixels-too-many", ""),
        (encoded("GIF", (700, 700), frames=12), "frames-too-many", ""),
        (encoded("GIF", (1000, 1000), frames=8), "pixels-too-many", ""),
    ]
    for data, reason, words in refused:
        with pytest.raises(PictureRefused) as error:
            await pool.inspect(body(data))
        assert error.value.reason == reason, data[:20]
        assert words in error.value.detail


async def test_a_body_in_a_file_is_decoded_from_there(pool: DecoderPool, tmp_path: Path) -> None:
    data = encoded("PNG")
    file = tmp_path / "body"
    file.write_bytes(data)
    picture = await pool.inspect(Body(None, file, len(data), hashlib.sha256(data).hexdigest()))
    assert picture.format == "PNG"


async def test_a_decoder_that_dies_is_replaced(pool: DecoderPool) -> None:
    await pool.inspect(body(encoded("PNG")))
    (process,) = pool._all
    process.kill()
    await process.wait()
    assert (await pool.inspect(body(encoded("PNG")))).format == "PNG"
    assert process not in pool._all


async def test_a_decoder_that_takes_too_long_is_killed() -> None:
    pool = DecoderPool(processes=1, max_pixels=1_000_000, max_frames=10, timeout_s=0.0001)
    with pytest.raises(PictureRefused, match="decode-timeout"):
        await pool.inspect(body(encoded("PNG")))
    assert pool._all == set()
    await pool.close()


def test_alike_pictures_have_near_hashes_and_others_do_not() -> None:
    gradient = Image.linear_gradient("L").rotate(90)
    same = decoder_process.difference_hash(gradient.resize((90, 80)))
    near = (int(decoder_process.difference_hash(gradient), 16) ^ int(same, 16)).bit_count()
    far = (int(decoder_process.difference_hash(gradient.rotate(180)), 16) ^ int(same, 16)).bit_count()
    assert near < 8 < far


def test_retry_after_is_a_number_or_a_date() -> None:
    now = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s("120") == 120
    assert retry_after_s("Sat, 21 Nov 2026 12:01:00 GMT", now=now) == 60
    assert retry_after_s("Sat, 21 Nov 2026 11:00:00 GMT", now=now) == 0
    assert retry_after_s("soon") is None
    assert retry_after_s(None) is None
