"""Unpacking ZIPs: the hostile corpus, and what an honest one becomes."""

import stat
import time
import zipfile
from pathlib import Path

import pytest

from services.containers.adapters.unpacking import unpack_zip
from services.containers.domain.archives import Caps
from services.containers.errors import ArchiveRefused
from tests.contract.containers.harness import zip_of
from tests.corpora.zip import hostile

CAPS = Caps(max_bytes=16 << 20, max_files=1000)


def never() -> None:
    """Nobody wants to stop."""


def unpack(content: bytes, folder: Path, caps: Caps = CAPS) -> int:
    archive, target = folder / "source.zip", folder / "code"
    archive.write_bytes(content)
    target.mkdir()
    return unpack_zip(archive, target, caps, check_stop=never)


@pytest.mark.parametrize("name", hostile.CASES)
def test_a_hostile_zip_is_refused_with_little_work_and_writes_nothing_outside(name: str, tmp_path: Path) -> None:
    content = hostile.CASES[name]()
    inner = tmp_path / "inner"
    inner.mkdir()
    began_s = time.process_time()
    with pytest.raises(ArchiveRefused) as caught:
        unpack(content, inner)
    assert time.process_time() - began_s < 2
    assert caught.value.errors[0].pointer == "/body/zip_file"
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert {path.name for path in inner.iterdir()} == {"source.zip", "code"}
    assert sum(path.stat().st_size for path in (inner / "code").rglob("*")) <= CAPS.max_bytes


def test_the_corpus_is_large_enough() -> None:
    assert len(hostile.CASES) >= 25


def test_an_overlap_of_megabytes_would_pass_by_its_size_alone(tmp_path: Path) -> None:
    content = hostile.overlapping(12)
    assert len(content) < 10_000
    with pytest.raises(ArchiveRefused, match="overlaps"):
        unpack(content, tmp_path)


def test_quoted_headers_are_seen_as_an_overlap(tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match="overlaps"):
        unpack(hostile.quoting(5), tmp_path)


def test_an_honest_zip_is_unpacked_whole_with_plain_modes(tmp_path: Path) -> None:
    files = {"index.html": "<h1>hi</h1>", "a/b/c.txt": "x" * 100_000, "ünï.txt": "é", "empty.txt": ""}
    assert unpack(zip_of(files), tmp_path) == len(files)
    code = tmp_path / "code"
    assert {path.relative_to(code).as_posix(): path.read_text() for path in code.rglob("*.*")} == files
    assert {stat.S_IMODE(path.stat().st_mode) & 0o700 for path in code.rglob("*") if path.is_file()} == {0o600}


def test_setuid_bits_do_not_come_along(tmp_path: Path) -> None:
    unpack(hostile.raw([(b"tool", b"#!/bin/sh")], mode=stat.S_IFREG | 0o6777), tmp_path)
    assert stat.S_IMODE((tmp_path / "code" / "tool").stat().st_mode) & 0o7111 == 0


def test_folders_without_files_are_kept(tmp_path: Path) -> None:
    assert unpack(hostile.raw([(b"empty/", b"")], mode=stat.S_IFDIR | 0o755), tmp_path) == 0
    assert (tmp_path / "code" / "empty").is_dir()


def test_whoever_waits_no_longer_can_break_off(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop() -> None:
        raise Enough

    archive, target = tmp_path / "a.zip", tmp_path / "code"
    archive.write_bytes(zip_of({"a": "b"}))
    target.mkdir()
    with pytest.raises(Enough):
        unpack_zip(archive, target, CAPS, check_stop=stop)


def test_zipfile_reads_the_corpus_builder_as_we_do(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(hostile.named("a/b"))
    with zipfile.ZipFile(archive) as zipped:
        assert zipped.read("a/b") == hostile.PLAIN
