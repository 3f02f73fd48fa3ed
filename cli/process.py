"""Serving ASGI apps with uvicorn: several in one event loop, stopped together and cleanly."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

GRACE_S = 2
SERVICE_KEEP_ALIVE_S = 30
WEBSOCKET_MAX_BYTES = 1024 * 1024
"""The gateway's own limit of a message."""


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def service_config(app: Any, **options: Any) -> uvicorn.Config:
    """How services are served: no access log of uvicorn's (ours carries ids), peers believed by the app alone."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",  # reads no further than the app does
        ws_max_size=WEBSOCKET_MAX_BYTES,
        ws_per_message_deflate=False,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=SERVICE_KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        **options,
    )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that its address is known before anything is built; raises OSError if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    bound.set_inheritable(True)
    return bound


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Running:
    """A server started in the background."""

    def __init__(self, config: uvicorn.Config, bound: socket.socket) -> None:
        self._server = Server(config)
        self._bound = bound
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start and wait until it serves; raises RuntimeError if its start-up failed (the reason is in the log)."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._bound]))
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError("the server did not start; the reason stands above")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Finish what is under way, within the grace time, and end."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


def keep_what_was_made() -> None:
    """Leave all that the start has made out of garbage collections: a full one over it stops everything for 0.1 s."""
    gc.collect()
    gc.freeze()


def stop_event() -> asyncio.Event:
    """An event that SIGINT or SIGTERM sets; a second signal ends the process at once."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        event.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    return event
