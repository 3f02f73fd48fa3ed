"""What bad credentials cost at the gateway, with an auth service that counts how often it is asked."""

import json
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.process import Running, listen, url_of
from gateway.main import create_app
from gateway.server import server_config
from gateway.settings import GatewaySettings
from libs.common.bus import LocalBus
from libs.common.settings import CommonSettings


class CountingAuth:
    """Refuses every key and password, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked.append(self.path)
                self.rfile.read(int(self.headers["content-length"]))
                problem = {"type": "/problems/bad-api-key", "title": "No", "status": 401, "detail": "No"}
                self._answer(401, problem)

            def do_GET(self) -> None:
                self._answer(200, {"items": []})

            def _answer(self, status: int, document: Any) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.05))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def auth() -> Iterator[CountingAuth]:
    server = CountingAuth()
    yield server
    server.close()


@pytest.fixture
async def http(auth: CountingAuth, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real gateway whose callers may spend 50 at once and earn next to nothing back."""
    common = CommonSettings(embedded=True, data_dir=tmp_path)
    settings = GatewaySettings(common=common, auth_urls=(auth.url,), rate_burst=50, rate_per_second=0.001)
    bus = LocalBus()
    await bus.start()
    bound = listen("127.0.0.1", 0)
    running = Running(server_config(create_app(settings, bus=bus), host="127.0.0.1", port=0), bound)
    await running.start()
    async with httpx.AsyncClient(base_url=url_of(bound), trust_env=False) as client:
        yield client
    await running.stop()
    await bus.close()


@pytest.mark.parametrize("path", ["/api/v1/users/me", "/protected"])
async def test_guessing_keys_is_throttled_before_auth_is_asked(
    http: httpx.AsyncClient, auth: CountingAuth, path: str
) -> None:
    answers = [await http.get(path, headers={"x-api-key": f"guess-{number}"}) for number in range(30)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 20
    assert int(answers[-1].headers["retry-after"]) > 0
    assert auth.asked == ["/internal/api-keys/exchange"] * 10


async def test_guessing_passwords_is_throttled_before_auth_is_asked(
    http: httpx.AsyncClient, auth: CountingAuth
) -> None:
    body = {"username": "admin", "password": "guess"}
    answers = [await http.post("/api/v1/login", json=body) for _ in range(10)]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 5
    assert auth.asked == ["/internal/login"] * 5


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"[" * 100_000, "application/json", 400),
        (b'{"a":' * 10_000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[]", "application/json", 422),
        (b'{"username": "\\ud800", "password": "x"}', "application/json", 422),
        (b'{"username": "a", "password": "' + b"x" * 5000 + b'"}', "application/json", 422),
        (b"username=a&password=%ff", "application/x-www-form-urlencoded", 401),
        (b"username=\xff", "application/x-www-form-urlencoded", 400),
        (b"nonsense", "multipart/form-data; boundary=x", 400),
        (b"nonsense", "multipart/form-data", 400),
    ],
    ids=str,
)
async def test_a_login_that_cannot_be_read_is_a_problem(
    http: httpx.AsyncClient, content: bytes, content_type: str, status: int
) -> None:
    answer = await http.post("/api/v1/login", content=content, headers={"content-type": content_type})
    assert answer.status_code == status, answer.text
    assert "password" not in answer.json().get("detail", "").replace("{username, password}", "")
