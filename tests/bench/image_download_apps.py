"""The images service as a process of its own: `python image_download_apps.py PORT GATEWAY_URL DATABASE_URL FOLDER`."""

import asyncio
import sys
from pathlib import Path

import jwt
import uvloop

from cli.process import Running, listen, service_config, stop_event
from libs.common.bus import LocalBus
from libs.common.logging import setup_logging
from libs.common.settings import CommonSettings
from libs.common.testing.serving import user_event
from services.images.main import create_app, migrate
from services.images.settings import ImagesSettings
from tests.bench.gateway_relay_apps import access_token


async def serve(port: int, gateway_url: str, database_url: str, folder: Path) -> None:
    """Serve as `telar serve images` does; `TELAR_IMAGES_*` says the rest."""
    common = CommonSettings(embedded=True, data_dir=folder, gateway_url=gateway_url, log_level="error")
    settings = ImagesSettings(common=common, database_url=database_url)
    setup_logging(common)
    await migrate(settings)
    stop, bus = stop_event(), LocalBus()
    user_id = jwt.decode(access_token(), options={"verify_signature": False})["sub"]
    running = Running(service_config(create_app(settings, bus=bus)), listen("127.0.0.1", port))
    await bus.start()
    await running.start()
    await bus.publish(user_event(user_id, image_bytes=-1))
    await stop.wait()
    await running.stop()
    await bus.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])))
