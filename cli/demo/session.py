"""A caller of the gateway, as the demonstration needs it: log in, wait for operations, listen to events."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

OPERATION_TIMEOUT_S = 180.0
WEB_HOST = "127.0.0.77"
"""Where the demonstration's web server listens: the one address on this machine that an embedded suite fetches pictures
from unless the operator names networks, and at which nothing of Telar listens."""


def web_host() -> str:
    """Where the suite under demonstration reaches this machine, and may fetch pictures from."""
    return os.environ.get("TELAR_DEMO_WEB_HOST") or WEB_HOST


class DemoFailed(Exception):
    """A step did not do what it should; the text says what to look at."""


def gateway_url() -> str:
    return os.environ.get("TELAR_DEMO_GATEWAY_URL") or f"http://127.0.0.1:{os.environ.get('TELAR_PORT', '8000')}"


def data_dir() -> Path:
    return Path(os.environ.get("TELAR_DATA_DIR", "data"))


def administrator() -> tuple[str, str]:
    """The administrator's name and password: from the settings, or as the first start made it up."""
    username = os.environ.get("TELAR_ADMIN_USERNAME", "admin")
    password = os.environ.get("TELAR_ADMIN_PASSWORD")
    file = data_dir() / "initial-admin-password"
    if password is None and file.exists():
        password = file.read_text().strip()
    if password is None:
        raise DemoFailed("set TELAR_ADMIN_PASSWORD: it is neither set nor in the data folder")
    return username, password


class Caller:
    """Somebody who is logged in."""

    def __init__(self, username: str, password: str) -> None:
        self.http = httpx.Client(base_url=gateway_url(), timeout=60, trust_env=False)
        answer = self.call("POST", "/api/v1/login", json={"username": username, "password": password})
        self.http.headers["authorization"] = f"Bearer {answer['access_token']}"
        self.user: dict[str, Any] = answer["user"]

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Make a call and give its JSON; raises DemoFailed with the problem's own words."""
        try:
            answer = self.http.request(method, path, **options)
        except httpx.ConnectError as error:
            raise DemoFailed(f"nothing answers at {gateway_url()}; run `make run` in another terminal") from error
        if answer.is_error:
            raise DemoFailed(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else answer

    def finished(self, operation: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
        """Wait for an operation's end, telling each step it takes."""
        deadline = time.monotonic() + OPERATION_TIMEOUT_S
        told = ""
        while time.monotonic() < deadline:
            operation = self.call("GET", f"/api/v1/operations/{operation['id']}")
            line = f"{operation['state']} {operation['step'] or ''} {operation['progress']:.0%}"
            if line != told:
                say(line)
                told = line
            if operation["state"] == "succeeded":
                return operation
            if operation["state"] in ("failed", "cancelled", "needs_operator"):
                raise DemoFailed(f"operation {operation['id']} {operation['state']}: {operation['error']}")
            time.sleep(0.2)
        raise DemoFailed(f"operation {operation['id']} did not end within {OPERATION_TIMEOUT_S:.0f} s")


class Listener:
    """Collects the types of the events that a caller is shown, until closed."""

    def __init__(self, caller: Caller) -> None:
        self.types: list[str] = []
        self._caller = caller
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def wait_for(self, event_type: str, timeout_s: float = 15.0) -> None:
        deadline = time.monotonic() + timeout_s
        while event_type not in self.types:
            if time.monotonic() > deadline:
                raise DemoFailed(f"the event {event_type} did not come; seen: {self.types}")
            time.sleep(0.05)

    def _listen(self) -> None:
        headers = {"authorization": self._caller.http.headers["authorization"]}
        url = f"{gateway_url()}/api/v1/events"
        with httpx.stream("GET", url, headers=headers, timeout=None, trust_env=False) as stream:  # noqa: S113 - open end
            for line in stream.iter_lines():
                self._ready.set()
                if line.startswith("data: "):
                    self.types.append(json.loads(line.removeprefix("data: "))["type"])
