"""A Git server over https on loopback (git-http-backend), with an authority of its own, for tests of cloning."""

import base64
import contextlib
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from libs.common.testing.certificates import self_signed

_BACKEND = ("git", "http-backend")
_IDENTITY = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org"}
_IDENTITY |= {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org"}


@dataclass
class GitServer:
    """`seen` are the request lines so far; a repository named in `tokens` asks for its token."""

    root: Path
    url: str
    ca_file: Path
    seen: list[str] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)

    def repository(self, name: str) -> str:
        return f"{self.url}/{name}.git"

    def commit(self, name: str, files: Mapping[str, str | bytes], *, branch: str = "main") -> str:
        """Replace a repository's tree on a branch; gives the commit."""
        bare, work = self.root / f"{name}.git", self.root / f".{name}"
        if not bare.exists():
            _git(self.root, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
            _git(bare, "config", "uploadpack.allowReachableSHA1InWant", "true")
            _git(self.root, "clone", "--quiet", str(bare), str(work))
        _git(work, "checkout", "--quiet", "-B", branch)
        for path in work.iterdir():
            if path.name != ".git":
                _git(work, "rm", "--quiet", "-r", "-f", "--ignore-unmatch", path.name)
        for path, content in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_bytes(content.encode() if isinstance(content, str) else content)
        _git(work, "add", "--all", "--force")
        _git(work, "commit", "--quiet", "--allow-empty", "-m", "x")
        _git(work, "push", "--quiet", "--force", "origin", branch)
        return _git(work, "rev-parse", "HEAD").strip()

    def run(self, name: str, *arguments: str) -> str:
        """Run git in a repository's work tree."""
        return _git(self.root / f".{name}", *arguments)


def _git(folder: Path, *arguments: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", **_IDENTITY}
    command = ["git", "-c", "protocol.file.allow=always", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def serving_git(folder: Path) -> Iterator[GitServer]:
    root = folder / "repositories"
    root.mkdir()
    ca_file, key_file = self_signed(folder, "127.0.0.1")
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file, key_file)
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    server = GitServer(root, f"https://127.0.0.1:{listening.server_port}", ca_file)
    listening.git = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self._body())

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _serve(self, body: bytes) -> None:
        server: GitServer = self.server.git  # type: ignore[attr-defined]
        server.seen.append(f"{self.command} {self.path} {self.headers.get('authorization', '')}".strip())
        url = urlsplit(self.path)
        name = url.path.split("/")[1].removesuffix(".git")
        if name in server.redirects:
            self._answer(302, {"location": server.redirects[name] + url.path}, b"")
        elif name in server.tokens and not self._authorized(server.tokens[name]):
            self._answer(401, {"www-authenticate": 'Basic realm="git"'}, b"")
        else:
            self._answer(*_backend(server.root, self.command, url.path, url.query, self.headers, body))

    def _authorized(self, token: str) -> bool:
        kind, _, basic = self.headers.get("authorization", "").partition(" ")
        return kind == "Basic" and base64.b64decode(basic).decode().partition(":")[2] == token

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)


def _backend(
    root: Path, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
) -> tuple[int, dict[str, str], bytes]:
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_PROTOCOL": headers.get("git-protocol", ""),
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REQUEST_METHOD": method,
        "CONTENT_TYPE": headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
    }
    done = subprocess.run(_BACKEND, input=body, env=environment, capture_output=True, check=False)
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
    status = int(fields.pop("Status", "200").split()[0])
    return status, fields, content
