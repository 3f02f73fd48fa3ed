"""What `telar dev` starts again."""

import os
from pathlib import Path

import pytest

from cli.dev import concerned, snapshot

NAMES = ("gateway", "auth", "images")


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        (["services/auth/domain.py"], {"auth"}),
        (["services/auth/domain.py", "gateway/entry.py"], {"auth", "gateway"}),
        (["libs/common/db.py"], set(NAMES)),
        (["cli/single.py"], set(NAMES)),
        (["services/__init__.py"], set(NAMES)),
        ([], set()),
    ],
)
def test_only_the_processes_that_run_on_a_file_start_again(changed: list[str], again: set[str]) -> None:
    assert concerned(map(Path, changed), NAMES) == again


def test_a_snapshot_tells_of_sources_alone(tmp_path: Path) -> None:
    source = tmp_path / "services" / "auth" / "main.py"
    for path in (source, source.parent / "__pycache__" / "main.pyc", tmp_path / "docs" / "api.md"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    before = snapshot(tmp_path)
    assert set(before) == {Path("services/auth/main.py")}
    os.utime(source, ns=(1, 1))
    assert snapshot(tmp_path) != before
