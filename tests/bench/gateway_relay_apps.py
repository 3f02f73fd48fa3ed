"""The processes that the relay's benchmark compares: `python gateway_relay_apps.py NAME PORT [UPSTREAM_PORT]`."""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import jwt
import uvicorn
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI, Request, Response

from gateway.main import create_app as create_gateway
from gateway.server import server_config
from gateway.settings import GatewaySettings
from gateway.tokens import SigningKey
from libs.common.bus import LocalBus
from libs.common.logging import setup_logging
from libs.common.settings import CommonSettings

AUDIENCE = "telar"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_BLOCK = bytes(256 * 1024)


def access_token() -> str:
    now = int(time.time())
    claims = {
        "iss": "telar",
        "aud": AUDIENCE,
        "sub": "0192f7c0-0000-7000-8000-000000000000",
        "sid": "s1",
        "jti": "j1",
        "role": "CLIENT",
        "scopes": ["vms", "images"],
        "username": "bench",
        "iat": now,
        "exp": now + 3600,
    }
    return jwt.encode(claims, KEY, "EdDSA", headers={"typ": "at+jwt", "kid": "k1"})


def real_gateway(upstream_port: int, folder: Path) -> Any:
    """The gateway as it is served, all its work included, in front of one upstream; its limits are out of the way."""
    keys = folder / "keys.json"
    keys.write_text(json.dumps({"keys": [SigningKey("k1", KEY, 0.0).jwk(private=True)]}))
    url = f"http://127.0.0.1:{upstream_port}"
    settings = GatewaySettings(
        common=CommonSettings(embedded=True, log_level="error"),
        keys_file=keys,
        images_urls=(url,),
        vms_urls=(url,),
        rate_per_second=1e9,
        rate_burst=1e9,
    )
    setup_logging(settings.common)
    return create_gateway(settings, bus=LocalBus())


def naive_proxy(upstream_port: int) -> FastAPI:
    """The peer: the proxy as it is usually written."""
    app = FastAPI()
    client = httpx.AsyncClient()

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])
    async def proxy(path: str, request: Request) -> Response:
        token = request.headers["authorization"].removeprefix("Bearer ")
        jwt.decode(token, KEY.public_key(), ["EdDSA"], audience=AUDIENCE, issuer="telar")
        headers = [(name, value) for name, value in request.headers.raw if name != b"host"]
        url = f"http://127.0.0.1:{upstream_port}/{path}"
        answer = await client.request(request.method, url, headers=headers, content=await request.body())
        return Response(answer.content, answer.status_code, dict(answer.headers))

    return app


def real_service() -> FastAPI:
    """A service like ours at its lightest: FastAPI, a path parameter, JSON."""
    app = FastAPI()

    @app.get("/api/v1/vms/{vm_id}")
    async def vm(vm_id: int) -> dict[str, Any]:
        return {"id": vm_id, "name": "vm", "status": "running", "cores": 2, "memory_mib": 2048}

    return app


async def bulk(port: int) -> None:
    """Takes uploads and gives downloads of `?bytes=` length as fast as it can."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.lower().split(b": ", 1) for line in head[:-4].split(b"\r\n")[1:])
                left = int(fields.get(b"content-length", 0))
                while left:
                    left -= len(await reader.read(min(left, 1 << 20)))
                size = int(head.split(b" ", 2)[1].partition(b"bytes=")[2] or 0)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                for _ in range(size // len(_BLOCK)):
                    writer.write(_BLOCK)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=1 << 20)
    await server.serve_forever()


def main(name: str, port: int, upstream_port: int) -> None:
    quiet: dict[str, Any] = {"host": "127.0.0.1", "port": port, "log_level": "warning", "access_log": False}
    if name == "gateway":
        with tempfile.TemporaryDirectory() as folder:
            app = real_gateway(upstream_port, Path(folder))
            uvicorn.Server(server_config(app, host="127.0.0.1", port=port)).run()
    elif name == "naive":
        uvicorn.run(naive_proxy(upstream_port), **(quiet | {"log_level": "critical"}))
    elif name == "service":
        uvicorn.run(real_service(), timeout_keep_alive=75, **quiet)
    elif name == "bulk":
        uvloop.run(bulk(port))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
