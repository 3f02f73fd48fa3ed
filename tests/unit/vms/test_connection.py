"""A connection to a cluster's API against a server that behaves badly."""

import io
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from libs.pvesim.certificate import Certificate
from services.vms.adapters.proxmox.connection import Connection, NotConnected, Unanswered, trust
from services.vms.settings import ClusterSettings

_GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + b'{"data":42}'
_PATH = "/api2/json/version"
Answering = Callable[[int], tuple[bytes, bool]]
"""Gives the bytes of the n-th answer, and whether the connection is closed after them."""


class RoughServer:
    """Answers each request with given bytes; `heard` are the requests, `connections` counts those who came."""

    def __init__(self, folder: Path, answering: Answering) -> None:
        certificate = Certificate(folder)
        certificate.ensure(["127.0.0.1"])
        self.fingerprint = certificate.fingerprint
        self.heard: list[bytes] = []
        self.connections = 0
        self.left = threading.Semaphore(0)
        """Released for each connection that was closed here."""
        self._answering = answering
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate.certificate_path, certificate.key_path)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(15)

    def _run(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with plain, self._tls.wrap_socket(plain, server_side=True) as connected:
                self._serve(connected)
            self.left.release()

    def _serve(self, connected: ssl.SSLSocket) -> None:
        closing = False
        while not closing:
            request = _request(connected)
            if not request:
                return
            self.heard.append(request)
            answer, closing = self._answering(len(self.heard))
            connected.sendall(answer)


def _request(connected: ssl.SSLSocket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connected.recv(65536)
        if not piece:
            return b""
        head += piece
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    wanted = head.index(b"\r\n\r\n") + 4 + (int(length[1]) if length else 0)
    while len(head) < wanted:
        head += connected.recv(65536)
    return head


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Answering], tuple[RoughServer, Connection]]]:
    opened: list[tuple[RoughServer, Connection]] = []

    def begin(answering: Answering) -> tuple[RoughServer, Connection]:
        server = RoughServer(tmp_path, answering)
        cluster = ClusterSettings.model_validate(
            {
                "name": "rough",
                "url": f"https://127.0.0.1:{server.port}",
                "token_id": "telar@pve!telar",
                "token_secret": "canary",
                "fingerprint": server.fingerprint,
            }
        )
        opened.append((server, Connection(cluster, trust(cluster), 10)))
        return opened[-1]

    yield begin
    for server, connection in opened:
        connection.close()
        server.close()


Serve = Callable[[Answering], tuple[RoughServer, Connection]]


def test_a_connection_is_kept_and_one_that_the_server_closed_is_not_used_again(serve: Serve) -> None:
    server, connection = serve(lambda number: (_GOOD, number == 2))
    url = connection.base_url + "/version"
    assert [connection.request("GET", url).content for _ in range(2)] == [b'{"data":42}'] * 2
    assert server.connections == 1
    assert server.left.acquire(timeout=15)
    assert connection.request("PUT", url, {"cores": 2}).status_code == 200
    assert server.connections == 2
    assert [request.split(b" ")[0] for request in server.heard] == [b"GET", b"GET", b"PUT"]
    assert connection.peer == "127.0.0.1"


def test_half_an_answer_is_none(serve: Serve) -> None:
    answers = {1: _GOOD[:-4], 2: b"", 3: b"220 mail ready\r\n\r\n"}
    server, connection = serve(lambda number: (answers.get(number, _GOOD), number in answers))
    for lost in (False, True, False):
        with pytest.raises(Unanswered) as caught:
            connection.request("POST", connection.base_url + "/version")
        assert caught.value.lost is lost
    assert connection.request("GET", connection.base_url + "/version").status_code == 200
    assert len(server.heard) == 4


def test_a_redirection_is_followed_nowhere(serve: Serve) -> None:
    away = b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    server, connection = serve(lambda _number: (away, False))
    with pytest.raises(Unanswered, match="302"):
        connection.request("GET", connection.base_url + "/version")
    assert len(server.heard) == 1


def test_a_failure_is_told_by_the_body_or_by_the_reason_phrase(serve: Serve) -> None:
    told = b'{"message":"VM is locked\\n"}'
    answers = {
        1: b"HTTP/1.1 500 Internal\r\nContent-Length: %d\r\n\r\n%s" % (len(told), told),
        2: b"HTTP/1.1 500 no such VM\r\nContent-Length: 2\r\n\r\n[]",
    }
    _, connection = serve(lambda number: (answers[number], False))
    reasons = [connection.request("GET", connection.base_url + "/version").reason for _ in answers]
    assert reasons == ["VM is locked", "no such VM"]


def test_what_is_not_connected_sends_nothing(serve: Serve) -> None:
    server, connection = serve(lambda _number: (_GOOD, True))
    server.close()
    with pytest.raises(NotConnected):
        connection.request("GET", connection.base_url + "/version")
    assert server.heard == []


def test_parameters_forms_and_files_are_sent_as_proxmox_reads_them(serve: Serve) -> None:
    server, connection = serve(lambda _number: (_GOOD, False))
    url = connection.base_url + "/version"
    connection.request("GET", url, params={"since": 5, "typefilter": "a&b"})
    connection.request("PUT", url, {"sshkeys": "a%2Bb", "cores": 2})
    file = io.BytesIO(b"\x00iso\r\n")
    file.name = "/seeds/one.iso"
    connection.request("POST", url, {"filename": file, "content": "iso"})
    get, put, post = server.heard
    assert get.startswith(b"GET " + _PATH.encode() + b"?since=5&typefilter=a%26b HTTP/1.1\r\n")
    assert b"Authorization: PVEAPIToken=telar@pve!telar=canary\r\n" in get
    assert put.endswith(b"\r\n\r\nsshkeys=a%252Bb&cores=2")
    assert b"Content-Type: application/x-www-form-urlencoded\r\n" in put
    head, _, body = post.partition(b"\r\n\r\n")
    boundary = re.search(rb"boundary=(\w+)", head)
    assert boundary is not None
    content, seed = body.split(b"--" + boundary[1])[1:3]
    assert content == b'\r\nContent-Disposition: form-data; name="content"\r\n\r\niso\r\n'
    assert b'name="filename"; filename="one.iso"\r\nContent-Type: application/octet-stream\r\n\r\n\x00iso\r\n' in seed
