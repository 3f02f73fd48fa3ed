"""Archives as streams, read by others' programs."""

import io
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable

import pytest

from services.fetcher.adapters import archives
from services.fetcher.adapters.archives import Member, tar_stream, zip_stream
from services.fetcher.ports import StoredFile

FILES = {
    "shop/products/1-image/metadata.json": b"{}",
    "shop/products/1-image/original/img_001.jpg": b"x" * 100_000,
    "shop/products/" + "long" * 40 + "-image/original/img_001.jpg": b"",
    "shop/products/é%2F-image/original/img_001.png": b"y" * 511,
}


def member(name: str, data: bytes, size_bytes: int | None = None) -> Member:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 30_000):
            yield data[at : at + 30_000]

    return Member(name, StoredFile(len(data) if size_bytes is None else size_bytes, None, chunks))


async def members(files: dict[str, bytes]) -> AsyncIterator[Member]:
    for name, data in files.items():
        yield member(name, data)


async def packed(
    pack: Callable[[AsyncIterator[Member]], AsyncIterator[bytes]], files: dict[str, bytes] | None = None
) -> io.BytesIO:
    return io.BytesIO(b"".join([piece async for piece in pack(members(FILES if files is None else files))]))


async def test_a_zip_holds_every_file() -> None:
    with zipfile.ZipFile(await packed(zip_stream)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == FILES
    with zipfile.ZipFile(await packed(zip_stream, {})) as archive:
        assert archive.namelist() == []


async def test_a_zip_of_more_files_than_sixteen_bits_count_is_whole() -> None:
    files = {f"{number}.jpg": b"%d" % number for number in range(66_000)}
    with zipfile.ZipFile(await packed(zip_stream, files)) as archive:
        assert len(archive.namelist()) == 66_000
        assert archive.read("65999.jpg") == b"65999"


async def test_a_zip_whose_offsets_need_sixty_four_bits_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MOST_32", 0xFFFFFFFF)
    directory = io.BytesIO()
    archives._add_to_directory(directory, b"x", bytes(10), 1, 2, 5 << 32)
    entry = directory.getvalue()
    assert entry[42:46] == b"\xff\xff\xff\xff"
    assert entry[-8:] == (5 << 32).to_bytes(8, "little")
    assert archives._zip_end(1, 10, 5 << 32).startswith(b"PK\x06\x06")


async def test_a_tar_holds_every_file() -> None:
    with tarfile.open(fileobj=await packed(tar_stream)) as archive:
        found = {entry.name: archive.extractfile(entry) for entry in archive.getmembers()}
        assert {name: file.read() if file else None for name, file in found.items()} == FILES


async def test_a_tar_breaks_off_when_a_file_has_changed() -> None:
    async def one() -> AsyncIterator[Member]:
        yield member("a", b"12345", 3)

    with pytest.raises(ValueError, match="changed"):
        [piece async for piece in tar_stream(one())]
