"""The settings with which uvicorn must serve the gateway."""

from typing import Any

import uvicorn
from starlette.types import ASGIApp

from gateway.server.protocol import GatewayHttpProtocol

_MAX_MESSAGE_BYTES = 1024 * 1024


def server_config(app: ASGIApp, *, host: str, port: int, **options: Any) -> uvicorn.Config:
    """Return uvicorn's settings for the gateway; `options` are further ones of uvicorn's own, and win.

    `proxy_headers` stays off: the relay alone decides whom to believe. The log level keeps uvicorn from logging the
    query strings of WebSockets, in which console tickets travel.
    """
    settings: dict[str, Any] = {
        "http": GatewayHttpProtocol,
        "ws": "websockets-sansio",
        "ws_max_size": _MAX_MESSAGE_BYTES,
        "ws_per_message_deflate": False,
        "loop": "uvloop",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "log_config": None,
        "log_level": "warning",
        "timeout_keep_alive": 75,
    }
    return uvicorn.Config(app, host=host, port=port, **(settings | options))
