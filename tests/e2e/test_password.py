"""The way back in for who is the only administrator and forgot the password: `telar password`."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from .conftest import REVOKED_S, Account, RunningSuite, log_in

NEW = "another correct horse"


def give(suite: RunningSuite, name: str, password: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", "password", name, "--data-dir", str(suite.data_dir)]
    environment = None
    if suite.containers is not None:
        command = ["docker", "compose", "exec", "-T", "auth", "telar", "password", name]
        environment = suite.containers.environment
    project = Path(__file__).parents[2]
    return subprocess.run(
        command, input=f"{password}\n", env=environment, cwd=project, capture_output=True, text=True, check=False
    )


def test_a_password_given_on_the_command_line_ends_the_old_ones_sessions(
    suite: RunningSuite, client: Account, within: Callable[..., float]
) -> None:
    given = give(suite, client.user["email"], NEW)
    assert given.returncode == 0, given.stderr
    assert NEW not in given.stdout + given.stderr
    within(lambda: client.http.get("/api/v1/users/me").status_code == 401, REVOKED_S)
    old = {"username": client.user["username"], "password": client.password}
    assert httpx.post(f"{suite.url}/api/v1/login", json=old, trust_env=False).status_code == 401
    assert log_in(suite.url, client.user["username"], NEW)["user"]["id"] == client.user["id"]


def test_nobody_and_a_poor_password_are_refused_in_a_line(suite: RunningSuite, client: Account) -> None:
    for name, password, told in (("nobody-of-that-name", NEW, "There is no user"), (client.user["username"], "x", "")):
        given = give(suite, name, password)
        assert given.returncode == 1
        assert told in given.stderr
        assert len(given.stderr.splitlines()) == 1
    assert client.http.get("/api/v1/users/me").status_code == 200


def test_without_a_database_it_says_where_to_look(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "password", "admin", "--data-dir", str(tmp_path)]
    given = subprocess.run(command, input="x\n", capture_output=True, text=True, check=False)
    assert given.returncode == 1
    assert "TELAR_AUTH_DATABASE_URL" in given.stderr
