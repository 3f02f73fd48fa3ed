"""Logs of a Swarm's services, from an engine that sends one line and then nothing."""

import contextlib
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import docker
import pytest

from services.containers.adapters.engine_logs import close_stream
from services.containers.adapters.swarm import SwarmEngine
from services.containers.domain.stacks import Health, Observed

LINE = b"2026-01-02T03:04:05.0Z said\n"


class SilentEngine(BaseHTTPRequestHandler):
    """Sends the line as a frame of a multiplexed stream (Engine API, ContainerAttach), and keeps the line open."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        frame = struct.pack(">BxxxL", 1, len(LINE)) + LINE
        self.wfile.write(b"%x\r\n%b\r\n" % (len(frame), frame))
        self.rfile.read(1)

    def log_message(self, *_arguments: object) -> None: ...


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    with ThreadingHTTPServer(("127.0.0.1", 0), SilentEngine) as server:
        server.daemon_threads = True
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        with contextlib.closing(docker.DockerClient(f"tcp://127.0.0.1:{server.server_port}", version="1.41")) as client:
            yield client
        server.shutdown()
        serving.join()


def test_a_followed_log_that_is_closed_keeps_no_thread(client: docker.DockerClient) -> None:
    engine = SwarmEngine("unused", max_log_streams=1)
    task = Observed("telar-1", "web", "id", "image", "running", Health.HEALTHY)
    stream = engine._opening(task, 1, follow=True)(client)
    assert next(stream) == LINE
    waiting = threading.Thread(target=lambda: list(stream), daemon=True)
    waiting.start()
    close_stream(stream)
    waiting.join(5)
    assert not waiting.is_alive()
