"""`telar up`: the whole suite in one process on loopback, every service a real HTTP server."""

import asyncio
import fcntl
import json
import os
import secrets
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr
from rich.console import Console

from cli.backends import EmbeddedMongo, EmbeddedPostgres
from cli.demo.session import WEB_HOST
from cli.logs import share_logs
from cli.process import GRACE_S, Running, keep_what_was_made, listen, service_config, stop_event, url_of
from cli.services import ServiceEntry, installed
from gateway.main import create_app as create_gateway
from gateway.server import server_config
from gateway.settings import GatewaySettings
from libs.common.bus import LocalBroker, create_bus
from libs.common.logging import LogPipeline, setup_logging
from libs.common.settings import CommonSettings
from libs.common.telemetry import setup_tracing
from libs.pvesim.app import RunningLab
from libs.pvesim.app import serve as serve_lab
from libs.pvesim.settings import LabSettings

_HOST = "127.0.0.1"


@dataclass
class Suite:
    """The parts of a running suite that its messages name."""

    gateway_url: str
    data_dir: Path
    mongo_uri: str
    services: dict[str, str] = field(default_factory=dict)
    lab: RunningLab | None = None


async def up(data_dir: Path, port: int) -> None:
    """Start everything, say where it is, run until SIGINT or SIGTERM, stop everything."""
    stop = stop_event()
    async with AsyncExitStack() as stack:
        suite = await start(stack, data_dir, port)
        keep_what_was_made()
        _announce(suite)
        await stop.wait()
        Console(stderr=True).print("Stopping; what is under way is kept and goes on at the next start.")


async def start(stack: AsyncExitStack, data_dir: Path, port: int) -> Suite:
    """Start the suite in an existing folder (absolute path); leaving the stack stops it in reverse order."""
    _lock(stack, data_dir)
    entries = installed()
    sockets = {"gateway": _listen_gateway(port)}
    sockets |= {entry.name: listen(_HOST, 0) for entry in entries}
    common = _common_settings(data_dir, sockets)
    pipeline = setup_logging(common)
    setup_tracing("telar", common.otlp_endpoint)

    postgres, mongo = EmbeddedPostgres(data_dir / "postgres"), EmbeddedMongo(data_dir / "mongo")
    stack.push_async_callback(mongo.stop)
    stack.push_async_callback(postgres.stop)
    await asyncio.gather(
        postgres.start(tuple(entry.name for entry in entries if entry.database == "sql")),
        mongo.start(),
        asyncio.to_thread(_load, entries),
    )
    suite = Suite(url_of(sockets["gateway"]), data_dir, mongo.uri)
    suite.services = {entry.name: url_of(sockets[entry.name]) for entry in entries}
    suite.lab = await _start_lab(stack, data_dir)
    settings = {entry.name: _service_settings(entry, common, suite, postgres, mongo) for entry in entries}
    for entry in entries:  # one after the other: Alembic's context is the process's
        await entry.migrate(settings[entry.name])
    await _serve(stack, entries, settings, sockets, common, pipeline)
    return suite


def _load(entries: tuple[ServiceEntry, ...]) -> None:
    """Import the services while the databases start."""
    for entry in entries:
        entry.load()


async def _serve(
    stack: AsyncExitStack,
    entries: tuple[ServiceEntry, ...],
    settings: Mapping[str, Any],
    sockets: Mapping[str, socket.socket],
    common: CommonSettings,
    pipeline: LogPipeline,
) -> None:
    """Start the services, then the gateway, then open the bus between them."""
    broker = LocalBroker()
    gateway_bus = create_bus("local:", source="gateway", broker=broker)
    share_logs(stack, pipeline, gateway_bus)
    running = []
    for entry in entries:
        bus = create_bus("local:", source=entry.name, broker=broker)
        await bus.start()
        stack.push_async_callback(bus.close)
        app = entry.create_app(settings[entry.name], bus=bus)
        running.append(Running(service_config(app), sockets[entry.name]))
    await gateway_bus.start()
    stack.push_async_callback(gateway_bus.close)
    stack.callback(broker.close)
    gateway_app = create_gateway(_gateway_settings(common, sockets), bus=gateway_bus)
    gateway = Running(
        server_config(gateway_app, host=_HOST, port=0, timeout_graceful_shutdown=GRACE_S), sockets["gateway"]
    )
    stack.push_async_callback(_stop_all, running)
    await asyncio.gather(*(server.start() for server in running))
    stack.push_async_callback(gateway.stop)
    await gateway.start()
    broker.open()


async def _stop_all(servers: list[Running]) -> None:
    await asyncio.gather(*(server.stop() for server in servers))


async def _start_lab(stack: AsyncExitStack, data_dir: Path) -> RunningLab | None:
    """The Proxmox VE lab, unless the operator has a cluster."""
    if _set("TELAR_VMS_CLUSTERS"):
        return None
    folder = data_dir / "pvesim"
    folder.mkdir(exist_ok=True)
    pace: Any = os.environ.get("TELAR_LAB_TIME_SCALE") or 1.0  # checked by the settings
    lab = await serve_lab(LabSettings(data_dir=folder, port=0, time_scale=pace))
    stack.push_async_callback(lab.aclose)
    return lab


def _common_settings(data_dir: Path, sockets: Mapping[str, socket.socket]) -> CommonSettings:
    chosen: dict[str, Any] = {}
    if not _set("TELAR_OUTBOUND_ALLOW_NETWORKS"):
        chosen["outbound_allow_networks"] = f"{WEB_HOST}/32"
    return CommonSettings(
        **chosen,
        embedded=True,
        data_dir=data_dir,
        bus_url="local:",
        gateway_url=url_of(sockets["gateway"]),
        auth_url=url_of(sockets["auth"]),
        service_secret=SecretStr(_kept_secret(data_dir / "secrets.json", "service_secret")),
    )


def _service_settings(
    entry: ServiceEntry, common: CommonSettings, suite: Suite, postgres: EmbeddedPostgres, mongo: EmbeddedMongo
) -> Any:
    """A service's settings: what the environment says, else the far ends that were started here."""
    data_dir = suite.data_dir
    values: dict[str, Any] = {}
    if entry.database == "sql":
        values["database_url"] = postgres.url(entry.name)
    if entry.name == "auth":
        values["initial_password_file"] = data_dir / "initial-admin-password"
    if entry.name == "images":
        values["blob_url"] = f"file://{data_dir / 'images'}"
    if entry.name == "containers":
        values["stacks_dir"] = data_dir / "stacks"
    if entry.name == "fetcher":
        values |= {"mongo_uri": mongo.uri, "source_uri": mongo.uri, "storage_url": str(data_dir / "fetcher")}
    if entry.name == "vms":
        values["images_url"] = suite.services["images"]
    if entry.name == "vms" and suite.lab is not None:
        values["clusters"] = [_lab_cluster(suite.lab)]
    prefix = str(entry.settings.model_config.get("env_prefix", ""))
    return entry.settings(
        common=common, **{name: value for name, value in values.items() if not _set(prefix + name.upper())}
    )


def _lab_cluster(lab: RunningLab) -> dict[str, Any]:
    return {
        "name": "lab",
        "url": lab.url,
        "token_id": lab.token_id,
        "token_secret": lab.token_secret.get_secret_value(),
        "fingerprint": lab.fingerprint,
    }


def _gateway_settings(common: CommonSettings, sockets: Mapping[str, socket.socket]) -> GatewaySettings:
    urls: dict[str, Any] = {
        f"{name}_urls": (url_of(bound),)
        for name, bound in sockets.items()
        if name != "gateway" and not _set(f"TELAR_GATEWAY_{name.upper()}_URLS")
    }
    return GatewaySettings(common=common, **urls)


def _lock(stack: AsyncExitStack, data_dir: Path) -> None:
    """Keep a second suite out of the folder; the system lets go of the lock when the process ends, however it ends."""
    file = stack.enter_context((data_dir / "lock").open("a"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise SystemExit(
            f"{data_dir} is in use by another telar. Stop it, or choose another: TELAR_DATA_DIR"
        ) from error


def _listen_gateway(port: int) -> socket.socket:
    try:
        return listen(_HOST, port)
    except OSError as error:
        raise SystemExit(
            f"Port {port} on {_HOST} is taken ({error.strerror}). Stop what uses it, or choose another: TELAR_PORT=8080"
        ) from error


def _set(name: str) -> bool:
    """Whether the operator gave a setting."""
    return bool(os.environ.get(name))


def _kept_secret(path: Path, name: str) -> str:
    """A secret made on first start and kept in a file that only its owner reads."""
    known = json.loads(path.read_text()) if path.exists() else {}
    if name not in known:
        known[name] = secrets.token_urlsafe(32)
        partial = path.with_suffix(".new")
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(known))
        partial.replace(path)
    value: str = known[name]
    return value


def _announce(suite: Suite) -> None:
    """Print where everything is, a line each, for people and scripts."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Gateway: {suite.gateway_url}")
    console.print(f"Docs:    {suite.gateway_url}/docs")
    console.print(f"MongoDB: {suite.mongo_uri}")
    if suite.lab is not None:
        console.print(f"Lab:     {suite.lab.url}")
    for name, url in suite.services.items():
        console.print(f"Service: {name} {url}")
    console.print(f"Data:    {suite.data_dir}")
    password_file = suite.data_dir / "initial-admin-password"
    if password_file.exists():
        console.print(f"Admin:   the made-up password is in {password_file}; delete it once you have changed it")
    console.print("Ready. Ctrl-C stops.")
    structlog.get_logger().info("suite_ready", gateway=suite.gateway_url)
