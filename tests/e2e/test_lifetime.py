"""Starting, stopping and starting again: data stays, revocations stay, leftovers of a crash are no hindrance."""

import os
import signal
import socket
from pathlib import Path

import httpx
import psutil
import pytest

from .conftest import log_in, start_suite


def test_a_second_start_keeps_data_and_revocations_and_so_does_one_after_a_kill(tmp_path: Path) -> None:
    first = start_suite(tmp_path / "data")
    session = log_in(first.url, first.username, first.password)
    bearer = {"authorization": f"Bearer {session['access_token']}"}
    body = {"email": "kept@example.org", "username": "kept", "password": "kept for ever"}
    assert httpx.post(f"{first.url}/api/v1/users/", json=body, headers=bearer).status_code == 201
    kept = log_in(first.url, "kept", "kept for ever")
    kept_bearer = {"authorization": f"Bearer {kept['access_token']}"}
    assert httpx.post(f"{first.url}/api/v1/logout", headers=kept_bearer).status_code == 204
    assert first.stop() == 0

    second = start_suite(tmp_path / "data", TELAR_ADMIN_PASSWORD="another, which is not used")
    try:
        assert log_in(second.url, "kept", "kept for ever")["user"]["username"] == "kept"
        assert log_in(second.url, first.username, first.password)
        assert httpx.get(f"{second.url}/protected", headers=kept_bearer).status_code == 401
        assert httpx.get(f"{second.url}/protected", headers=bearer).status_code == 200
        assert second.mongo_uri == first.mongo_uri
    finally:
        assert second.process is not None
        os.kill(second.process.pid, signal.SIGKILL)
        second.process.wait()

    third = start_suite(tmp_path / "data")
    try:
        assert log_in(third.url, first.username, first.password)
        assert httpx.get(f"{third.url}/protected", headers=kept_bearer).status_code == 401
        assert httpx.get(f"{third.url}/api/v1/health").json()["status"] == "ok"
    finally:
        assert third.stop() == 0
    left = [process.name() for process in psutil.process_iter() if str(tmp_path) in _command(process)]
    assert left == []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_taken_port_is_told_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(pytest.fail.Exception, match="choose another: TELAR_PORT"):
            start_suite(tmp_path / "data", TELAR_PORT=str(port))
