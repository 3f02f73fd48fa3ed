import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from libs.common.logging import LogPipeline, audit_log, setup_logging
from libs.common.redaction import redact, redact_text
from libs.common.settings import CommonSettings
from tests.corpora.log_secrets.lines import CANARY, FIELDS, HARMLESS, TEXTS


@pytest.mark.parametrize("name", TEXTS)
def test_a_secret_in_a_text_is_blotted_out(name: str) -> None:
    text, secret = TEXTS[name]
    assert secret in text
    assert secret not in redact_text(text)


@pytest.mark.parametrize("name", FIELDS)
def test_a_secret_in_a_field_is_blotted_out(name: str) -> None:
    fields, secret = FIELDS[name]
    shown = json.dumps({key: redact(value, key) for key, value in fields.items()} | {"keys": redact(fields)})
    assert secret not in shown


@pytest.mark.parametrize("fields", HARMLESS, ids=",".join)
def test_what_is_no_secret_stays_readable(fields: dict[str, Any]) -> None:
    assert {key: redact(value, key) for key, value in fields.items()} == fields


def test_the_words_around_a_secret_stay() -> None:
    assert redact_text(f"cloning https://bob:{CANARY}@git.example/x.git now") == (
        "cloning https://[redacted]@git.example/x.git now"
    )


@pytest.mark.timeout(20)
def test_a_long_line_is_redacted_in_no_time() -> None:
    for part in ("eyJ", "password", "://", "-----BEGIN PRIVATE KEY-----", "a@b!c=", "Bearer ", "PVE:"):
        assert redact_text(part * 20_000)  # a pattern that backtracks would still be at it when the time-out strikes


@pytest.fixture
def make_pipeline() -> Iterator[Callable[..., LogPipeline]]:
    """Installs the real pipeline, and the one of before at the end."""
    root = logging.getLogger()
    handlers, level, before = root.handlers, root.level, structlog.get_config()
    made: list[LogPipeline] = []

    def make(**settings: Any) -> LogPipeline:
        made.append(setup_logging(CommonSettings(embedded=True, **settings)))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close()
    structlog.configure(**before)
    root.handlers, root.level = handlers, level


def test_every_destination_of_a_log_line_is_redacted(
    make_pipeline: Callable[..., LogPipeline], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[bytes] = []
    pipeline = make_pipeline(log_format="json", log_dir=tmp_path)
    pipeline.add_sink(lines.append)
    log = structlog.get_logger()
    log.info("text", message=f"password={CANARY}")
    event = f"password={CANARY}"
    log.info(event)
    log.info("wrapped", value=SecretStr(CANARY), nested=[{"token": CANARY}])
    with structlog.contextvars.bound_contextvars(authorization=f"Bearer {CANARY}"):
        log.warning("bound")
    audit_log("user.created", detail={"password": CANARY})
    logging.getLogger("some.library").warning("POST data: %s", {"password": CANARY})
    logging.getLogger("proxmoxer.core").info("POST https://pve/ %s", {"cipassword": CANARY})
    try:
        int(f"amqp://u:{CANARY}@host")
    except ValueError:
        log.exception("failed")
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    written = [capsys.readouterr().err, *files.values(), *(line.decode() for line in lines)]
    assert "failed" in written[0]
    assert "failed" in files["application.log"]
    assert "user.created" in files["audit.log"]
    assert len(lines) == 7
    assert not [text for text in written if CANARY in text]


def test_the_console_is_redacted_as_well(
    make_pipeline: Callable[..., LogPipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    make_pipeline(log_format="console")
    structlog.get_logger().error("refused", password=CANARY, url=f"https://a:{CANARY}@b")
    shown = capsys.readouterr().err
    assert "refused" in shown
    assert CANARY not in shown
