"""Beginnings of bodies on the disk: whole, bounded, taken once."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from services.fetcher.adapters import partials as module
from services.fetcher.adapters.partials import Partial, Partials

DATA = b"0123456789" * 20_000


def partials(root: Path) -> Partials:
    for name in ("kept", "spool"):
        (root / name).mkdir(exist_ok=True)
    return Partials(lambda: root / "kept", lambda: root / "spool")


def begun(root: Path, data: bytes = DATA) -> Partial:
    file = root / "spool" / "body"
    file.write_bytes(data)
    return Partial(file, len(data), hashlib.sha256(data), '"1"')


def test_a_beginning_outlives_its_process_and_its_hash_goes_on(tmp_path: Path) -> None:
    partials(tmp_path).keep("http://x/1", begun(tmp_path))
    after = partials(tmp_path)
    assert after.has("http://x/1")
    assert not after.has("http://x/2")
    found = after.take("http://x/1")
    assert found is not None
    assert (found.file.read_bytes(), found.size_bytes, found.validator) == (DATA, len(DATA), '"1"')
    found.digest.update(b"rest")
    assert found.digest.hexdigest() == hashlib.sha256(DATA + b"rest").hexdigest()


def test_a_beginning_is_taken_once(tmp_path: Path) -> None:
    first = partials(tmp_path)
    first.keep("http://x/1", begun(tmp_path))
    second = partials(tmp_path)
    assert second.has("http://x/1")
    assert first.take("http://x/1") is not None
    assert second.take("http://x/1") is None
    assert not second.has("http://x/1")


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "another's"])
def test_a_beginning_that_is_not_as_it_was_kept_is_none(tmp_path: Path, damage: str) -> None:
    made = partials(tmp_path)
    made.keep("http://x/1", begun(tmp_path))
    (file,) = (tmp_path / "kept").iterdir()
    data = file.read_bytes()
    damaged = {"cut": data[:-9], "changed": b"9" + data[1:], "empty": b"", "another's": data.replace(b"x/1", b"x/2")}
    file.write_bytes(damaged[damage])
    assert made.take("http://x/1") is None
    assert [*(tmp_path / "kept").iterdir(), *(tmp_path / "spool").iterdir()] == []


def test_the_oldest_beginnings_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    made = partials(tmp_path)
    for number in range(3):
        made.keep(f"http://x/{number}", begun(tmp_path))
    assert [made.has(f"http://x/{number}") for number in range(3)] == [False, True, True]
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_beginning_from_long_ago_goes_at_the_next_start(tmp_path: Path) -> None:
    partials(tmp_path).keep("http://x/1", begun(tmp_path))
    (file,) = (tmp_path / "kept").iterdir()
    os.utime(file, (time.time() - 8 * 86_400,) * 2)
    assert not partials(tmp_path).has("http://x/1")
    assert not file.exists()


def test_a_beginning_that_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    made = partials(tmp_path)
    assert not made.has("http://x/1")
    (tmp_path / "kept").rmdir()
    made.keep("http://x/1", begun(tmp_path))
    assert list((tmp_path / "spool").iterdir()) == []
    assert not made.has("http://x/1")
