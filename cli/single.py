"""`telar serve`, `telar migrate`, `telar pvesim`: one process of the distributed form."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog
import typer
import uvicorn
from pydantic import SecretStr

from cli.logs import share_logs
from cli.process import GRACE_S, Running, keep_what_was_made, listen, service_config, stop_event, url_of
from cli.services import SERVICES, by_name, installed
from gateway.main import create_app as create_gateway
from gateway.server import server_config
from gateway.settings import GatewaySettings
from libs.common.bus import Bus, create_bus
from libs.common.logging import setup_logging
from libs.common.settings import CommonSettings
from libs.common.telemetry import setup_tracing
from libs.pvesim.app import serve as serve_lab
from libs.pvesim.settings import LabSettings

NAMES = ("gateway", *(entry.name for entry in SERVICES))


async def serve(name: str, host: str, port: int) -> None:
    """Run one service until SIGINT or SIGTERM."""
    _refuse_unknown([name], NAMES)
    stop = stop_event()
    common = CommonSettings()
    pipeline = setup_logging(common)
    tracing = setup_tracing(f"telar-{name}", common.otlp_endpoint)
    async with AsyncExitStack() as stack:
        stack.callback(tracing.shutdown)
        stack.callback(pipeline.close)
        bus = create_bus(common.bus_url, source=name)
        await bus.start()
        stack.push_async_callback(bus.close)
        share_logs(stack, pipeline, bus)
        bound = listen(host, port)
        running = Running(_config(name, common, bus), bound)
        await running.start()
        stack.push_async_callback(running.stop)
        keep_what_was_made()
        structlog.get_logger().info("listening", service=name, url=url_of(bound))
        await stop.wait()


def _refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}")


def _config(name: str, common: CommonSettings, bus: Bus) -> uvicorn.Config:
    if name == "gateway":
        app: Any = create_gateway(GatewaySettings(common=common), bus=bus)
        return server_config(app, host="", port=0, timeout_graceful_shutdown=GRACE_S)
    entry = by_name(name)
    return service_config(entry.create_app(entry.settings(common=common), bus=bus))


async def migrate(names: list[str]) -> None:
    """Migrate the named services' databases, or all installed ones'."""
    _refuse_unknown(names, NAMES[1:])
    common = CommonSettings()
    setup_logging(common)
    entries = [by_name(name) for name in names] if names else list(installed())
    for entry in entries:
        await entry.migrate(entry.settings(common=common))
        typer.echo(f"{entry.name}: schema is up to date")


async def lab(folder: Path, host: str, port: int, token_secret: SecretStr | None, time_scale: float) -> None:
    """Run the Proxmox VE lab alone and say how to reach it; a secret that was given is not shown."""
    stop = stop_event()
    settings = LabSettings(data_dir=folder, host=host, port=port, token_secret=token_secret, time_scale=time_scale)
    running = await serve_lab(settings)
    typer.echo(f"Lab:         {running.url}")
    typer.echo(f"Fingerprint: {running.fingerprint}")
    shown = "" if token_secret else f"={running.token_secret.get_secret_value()}"
    typer.echo(f"Token:       {running.token_id}{shown}")
    try:
        await stop.wait()
    finally:
        await asyncio.shield(running.aclose())
