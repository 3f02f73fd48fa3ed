"""How the gateway listens: uvicorn with an HTTP/1.1 protocol of its own, strict on input and lean on the way out."""

from gateway.server.config import server_config
from gateway.server.protocol import GatewayHttpProtocol

__all__ = ["GatewayHttpProtocol", "server_config"]
