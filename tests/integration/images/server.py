"""Runs the images service as a process of its own, so that it can be killed and its memory measured.

Called as `server.py DATABASE_URL FOLDER LEASE_S`; prints one line of JSON: its port and a token of the user `owner`.
"""

import asyncio
import json
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from libs.common.bus.local import LocalBus
from libs.common.testing.identity import TestIssuer
from libs.common.testing.serving import user_event
from services.images.main import create_app, migrate
from tests.contract.images.harness import settings


async def main(database_url: str, folder: Path, lease_s: float) -> None:
    chosen = settings(database_url, folder, upload_lease_s=lease_s, sweep_every_s=0.2)
    await migrate(chosen)
    bus, issuer = LocalBus(), TestIssuer()
    app = create_app(chosen, bus=bus, verifier=issuer.verifier())
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    await bus.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event to wait for
        await asyncio.sleep(0.01)
    await bus.publish(user_event("owner", image_bytes=-1))
    sys.stdout.write(json.dumps({"port": listener.getsockname()[1], "token": issuer.token("owner")}) + "\n")
    sys.stdout.flush()
    await serving
    await bus.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
