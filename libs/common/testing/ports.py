"""Ports for servers that tests start."""

import secrets
import socket
from contextlib import closing


def free_port() -> int:
    """A free port of this machine that stays free while its server is down.

    Below Linux's range for outgoing connections: a client that keeps trying an ephemeral port of its own machine
    ends up connected to itself, and then the server cannot have the port back. And below the range of stacks' ports.
    """
    while True:
        port = 12_000 + secrets.randbelow(8_000)
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
