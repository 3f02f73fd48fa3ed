import os
import socket
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.main import app
from gateway.tokens import KeyRing

SECRET = "of-at-least-twenty-four-characters"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ, "TELAR_SERVICE_SECRET": SECRET})


def run(*arguments: str, given: bytes = b"") -> Result:
    return CliRunner().invoke(app, arguments, input=given)


def told(result: Result) -> str:
    """What a command that was refused says, without a traceback."""
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    return f"{result.output} {result.exception}"


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_service_that_there_is_none_is_named_with_those_that_there_are(command: str) -> None:
    assert "'nope' is not one of" in told(run(command, "nope"))


@pytest.mark.parametrize(
    ("variable", "url", "command"),
    [
        ("TELAR_AUTH_DATABASE_URL", "postgresql://telar:hidden@127.0.0.1:9/telar", ("migrate", "auth")),
        ("TELAR_FETCHER_MONGO_URI", "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=100", ("documents", "save")),
        ("TELAR_FETCHER_MONGO_URI", "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=100", ("migrate", "fetcher")),
    ],
)
def test_a_database_that_is_away_is_told_in_a_line(variable: str, url: str, command: tuple[str, ...]) -> None:
    os.environ[variable] = url
    message = told(run(*command))
    assert "127.0.0.1" in message
    assert "hidden" not in message


def test_a_file_that_is_no_saved_job_store_is_refused_in_a_line() -> None:
    assert "is cut off or no `telar documents save`" in told(run("documents", "load", given=b"no document"))


def test_a_port_that_is_taken_or_none_and_a_missing_file_are_told_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "Address already in use" in told(run("serve", "gateway", "--host", "127.0.0.1", "--port", port))
    assert "65535" in told(run("up", "--port", "70000"))
    assert "missing-token" in told(run("pvesim", "--token-file", "missing-token"))


def test_options_are_read_from_the_file_of_settings_too(tmp_path: Path) -> None:
    keys = tmp_path / "elsewhere" / "gateway" / "keys.json"
    keys.parent.mkdir(parents=True)
    KeyRing(keys).ensure()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / ".env").write_text(f"TELAR_PORT={port}\nTELAR_DATA_DIR={tmp_path / 'elsewhere'}\n")
        assert f"Port {port} on 127.0.0.1 is taken" in told(run("up"))
    assert (tmp_path / "elsewhere" / "lock").exists()
    assert not (tmp_path / "data").exists()
    assert f"published in {keys}" in run("keys", "rotate").output


def test_keys_are_rotated_where_there_are_some_alone(tmp_path: Path) -> None:
    assert "TELAR_DATA_DIR" in told(run("keys", "rotate"))
    assert not (tmp_path / "data").exists()
