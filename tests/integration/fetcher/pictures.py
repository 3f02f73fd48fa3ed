"""A web server of real pictures and of servers' misbehaviour, counting what it was asked for."""

import gzip
import io
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

_ENDLESS = {"/endless": (65_536, 0.0), "/drip": (3, 0.2)}
"""Bytes at once, and the pause in seconds after them."""
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def picture(name: str = "JPEG", size: tuple[int, int] = (64, 48), *, seed: int = 0, frames: int = 1) -> bytes:
    """A real picture of noise, so that no two seeds give the same."""
    noise = random.Random(seed)  # noqa: S311 - noise, not a secret
    images = [Image.frombytes("RGB", size, noise.randbytes(size[0] * size[1] * 3)) for _ in range(frames)]
    target = io.BytesIO()
    more: dict[str, Any] = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(target, name, **more)
    return target.getvalue()


class PictureServer:
    """`/ok/<n>.jpg`, `/format/<NAME>`, `/<misbehaviour>`; `hits` counts by path."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.hits: Counter[str] = Counter()
        self.at_once = 0
        self.most_at_once = 0
        self.delay_s = 0.0
        self.asked: list[tuple[str, dict[str, str]]] = []
        """Paths and headers of all requests."""
        self.sent_bytes: Counter[str] = Counter()
        self.generation = 1
        """Of the pictures that have validators; another one makes them others."""
        self.changes_at_visit: int | None = None
        """At which visit of /broken-off its picture has become another."""
        self.robots: tuple[int, bytes] = (404, b"")
        self._lock = threading.Lock()
        self._server = _Server((host, 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def enter(self, path: str) -> int:
        with self._lock:
            self.hits[path] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            return self.hits[path]

    def leave(self) -> None:
        with self._lock:
            self.at_once -= 1

    def conditional(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """A picture with an ETag or a date."""
        number = int(path.split("/")[2].split(".", maxsplit=1)[0])
        tag, date = f'"{self.generation}-{number}"', f"Fri, 27 Nov 2026 0{self.generation}:00:00 GMT"
        validator = {"ETag": tag} if path.startswith("/etag/") else {"Last-Modified": date}
        if tag == headers.get("if-none-match") or date == headers.get("if-modified-since"):
            return 304, validator, b""
        return 200, validator, picture(seed=number + 1000 * self.generation)

    def broken_off(self, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Half a picture at most, each time; the rest when asked for it."""
        whole = picture("BMP", (600, 500), seed=self.generation)
        validator = {"ETag": f'"{self.generation}"', "Accept-Ranges": "bytes"}
        begin = 0
        if "range" in headers and headers.get("if-range") == validator["ETag"]:
            begin = int(headers["range"].removeprefix("bytes=").removesuffix("-"))
        rest = whole[begin:]
        validator["Content-Length"] = str(len(rest))
        if begin:
            validator["Content-Range"] = f"bytes {begin}-{len(whole) - 1}/{len(whole)}"
        return 206 if begin else 200, validator, rest if begin > len(whole) // 2 else rest[: len(whole) // 2 - 100_000]

    def answer(self, path: str, visit: int) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; a Content-Length header overrides the true one."""
        ok = {"Content-Type": "image/png"}
        if path == "/robots.txt":
            return self.robots[0], {"Content-Type": "text/plain"}, self.robots[1]
        if path.startswith("/ok/"):
            return 200, ok, picture(seed=int(path.split("/")[2].split(".", maxsplit=1)[0]))
        if path.startswith("/format/"):
            return 200, ok, picture(path.split("/")[2])
        jpeg = picture()
        answers: dict[str, tuple[int, dict[str, str], bytes]] = {
            "/missing": (404, {}, b"no"),
            "/broken": (500, {}, b"oops"),
            "/flaky": (200, ok, jpeg) if visit > 2 else (503, {"Retry-After": "0"}, b"later"),
            "/html": (200, ok, b"<!DOCTYPE html><html><body>not found</body></html>"),
            "/svg": (200, {"Content-Type": "image/svg+xml"}, SVG),
            "/empty": (200, ok, b""),
            "/truncated": (200, ok, picture("PNG")[:-200]),
            "/short": (200, {**ok, "Content-Length": str(len(jpeg) + 50)}, jpeg),
            "/pixels": (200, ok, _bomb()),
            "/frames": (200, ok, picture("GIF", (8, 8), frames=40)),
            "/large": (200, {**ok, "Content-Length": "6000000"}, b"\xff\xd8\xff"),
            "/big": (200, ok, picture("BMP", (1100, 1000))),
            "/patience": (200, ok, jpeg) if visit > 1 else (429, {"Retry-After": "1"}, b"slow down"),
            "/recovers": (200, ok, jpeg) if visit > 1 else (500, {}, b"oops"),
            "/loop": (302, {"Location": "/loop"}, b""),
            "/scheme": (302, {"Location": "ftp://127.0.0.1/x.jpg"}, b""),
            "/packed": (200, {**ok, "Content-Encoding": "gzip"}, gzip.compress(bytes(20_000_000))),
            "/redirect": (302, {"Location": "/ok/7.jpg"}, b""),
            "/inward": (302, {"Location": "http://169.254.169.254/latest/meta-data/"}, b""),
        }
        return answers.get(path, (404, {}, b""))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: PictureServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        owner = self.server.owner
        visit = owner.enter(self.path)
        try:
            if self.path in _ENDLESS:
                self._send_without_end(*_ENDLESS[self.path])
                return
            time.sleep(owner.delay_s)
            given = {name.lower(): value for name, value in self.headers.items()}
            owner.asked.append((self.path, given))
            if self.path.startswith(("/etag/", "/dated/")):
                status, headers, body = owner.conditional(self.path, given)
            elif self.path == "/broken-off":
                if visit == owner.changes_at_visit:
                    owner.generation += 1
                status, headers, body = owner.broken_off(given)
            else:
                status, headers, body = owner.answer(self.path, visit)
            owner.sent_bytes[self.path] += len(body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            if int(headers.get("Content-Length", len(body))) != len(body):
                self.close_connection = True
        finally:
            owner.leave()

    def _send_without_end(self, size_bytes: int, pause_s: float) -> None:
        """A body that claims no length and never ends by itself."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        while True:
            self.wfile.write(b"\xff\xd8\xff".ljust(size_bytes, b"\x00"))
            time.sleep(pause_s)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Tests are quiet."""


def _bomb() -> bytes:
    """A small file of 25 million pixels."""
    target = io.BytesIO()
    Image.new("1", (5000, 5000)).save(target, "PNG")
    return target.getvalue()
