import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from libs.common.logging import audit_log, setup_logging
from libs.common.settings import CommonSettings


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Logs into files of 2 kB each, three of them kept; what was configured before comes back."""
    before = structlog.get_config()
    settings = CommonSettings(
        _env_file=None, embedded=True, log_format="json", log_dir=tmp_path, log_rotate_bytes=2000, log_rotate_keep=3
    )
    pipeline = setup_logging(settings)
    yield tmp_path
    pipeline.close()
    structlog.configure(**before)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_application_and_audit_lines_go_to_files_of_their_own(folder: Path) -> None:
    structlog.get_logger().info("something_happened", vm_id="vm-1")
    audit_log("user.created", actor="ada", target="bob")
    assert [line["event"] for line in lines(folder / "application.log")] == ["something_happened"]
    assert [(line["event"], line["actor"]) for line in lines(folder / "audit.log")] == [("user.created", "ada")]


def test_files_are_rotated_and_old_ones_dropped(folder: Path) -> None:
    for number in range(200):
        structlog.get_logger().info("line", number=number)
    kept = sorted(path.name for path in folder.glob("application.log*"))
    assert kept == ["application.log", "application.log.1", "application.log.2", "application.log.3"]
    assert all(path.stat().st_size <= 2000 for path in folder.glob("application.log*"))
    assert lines(folder / "application.log")[-1]["number"] == 199


def test_a_line_below_the_level_is_not_written(folder: Path) -> None:
    structlog.get_logger().debug("too_quiet")
    assert not (folder / "application.log").exists() or lines(folder / "application.log") == []
