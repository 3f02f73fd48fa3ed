"""A stack's code as files, where the file manager has made what no archive may hold."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.containers.adapters.tree import CodeTree
from services.containers.domain.archives import Caps
from services.containers.errors import FileTooLarge

DEEP = 1500


@pytest.fixture
def tree(tmp_path: Path) -> CodeTree:
    return CodeTree(tmp_path, Caps(max_bytes=1000, max_files=10))


def nest(folder: Path, depth: int) -> None:
    """Make folders in folders, deeper than a path can name, with a file and a link at each level."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        Path(f"/proc/self/fd/{at}/file").write_text("x")
        Path(f"/proc/self/fd/{at}/link").symlink_to("/etc")
        os.mkdir("deeper", dir_fd=at)
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


async def body() -> AsyncIterator[bytes]:
    yield b"x"


async def of(size_bytes: int) -> AsyncIterator[bytes]:
    yield b"x" * size_bytes


async def test_folders_deeper_than_any_recursion_are_removed_and_until_then_nothing_is_written(
    tree: CodeTree, tmp_path: Path
) -> None:
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "way").symlink_to(outside)
    nest(tmp_path / "folder", DEEP)
    try:
        with pytest.raises(FileTooLarge):
            await tree.write("new.txt", body(), None, is_new=False)
    finally:
        tree.remove("folder", None, recursive=True)
    assert tree.listed("") == []
    assert (outside / "kept").exists()
    assert (await tree.write("new.txt", body(), None, is_new=False)).size_bytes == 1


async def test_files_written_at_the_same_time_are_counted_together(tree: CodeTree) -> None:
    async def slow() -> AsyncIterator[bytes]:
        await tree.write("other", of(600), None, is_new=False)
        yield b"x" * 600

    with pytest.raises(FileTooLarge):
        await tree.write("slow", slow(), None, is_new=False)
    assert [entry.name for entry in tree.listed("")] == ["other"]


async def test_so_many_files_written_at_the_same_time_are_counted_together(tmp_path: Path) -> None:
    tree = CodeTree(tmp_path, Caps(max_bytes=1000, max_files=2))

    async def slow() -> AsyncIterator[bytes]:
        for name in ("a", "b"):
            (tmp_path / name).touch()
        yield b"x"

    with pytest.raises(FileTooLarge):
        await tree.write("slow", slow(), None, is_new=False)
    assert (await tree.write("a", of(1000), None, is_new=False)).size_bytes == 1000


async def test_what_a_crash_left_of_an_upload_goes_with_a_later_one(tree: CodeTree, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    old, young = tmp_path / "folder" / ".telar-partial-1", tmp_path / ".telar-partial-2"
    for partial in (old, young):
        partial.touch()
    os.utime(old, (0, 0))
    await tree.write("new.txt", body(), None, is_new=False)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_name_that_is_no_text_is_not_listed(tree: CodeTree, tmp_path: Path) -> None:
    for name in (b"caf\xe9.txt", "café.txt".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    assert [entry.name for entry in tree.listed("")] == ["café.txt"]
