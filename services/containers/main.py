"""Composition root of the containers service."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from libs.common import migrations
from libs.common.auth import TokenVerifier
from libs.common.bus import Bus
from libs.common.http import AddressPolicy, GuardedClient
from libs.common.runtime import SqlRuntime
from libs.common.sealing import Sealer
from services.containers import api
from services.containers.adapters.code import FolderCodeStore
from services.containers.adapters.compose import ComposeCommand
from services.containers.adapters.engine import DockerEngine
from services.containers.adapters.git import GitCommand
from services.containers.adapters.swarm import SwarmCommand, SwarmEngine
from services.containers.adapters.templates import ConfiguredImages, FolderCatalog
from services.containers.adapters.tree import CodeTree
from services.containers.consumers import handlers
from services.containers.legacy import legacy_router
from services.containers.operations import sagas
from services.containers.service import (
    Changes,
    Deployment,
    Endings,
    Files,
    Planner,
    Reconciler,
    Renderer,
    Sources,
    Stacks,
    Sweeper,
    Views,
)
from services.containers.service.records import Addresses
from services.containers.settings import ContainersSettings

Settings = ContainersSettings
_NAME = "containers"


def create_app(settings: ContainersSettings, *, bus: Bus, verifier: TokenVerifier | None = None) -> FastAPI:
    """Wire the service; the bus's owner starts and closes it, `verifier` is given by tests only."""
    runtime = SqlRuntime(_NAME, settings.common, settings.database_url, bus, handlers=handlers(), verifier=verifier)
    runtime.disks["stacks"] = settings.stacks_dir
    engine, compose = _orchestrator(settings)
    code = FolderCodeStore(settings.stacks_dir)
    catalog = FolderCatalog()
    web = GuardedClient(AddressPolicy(settings.common.outbound_allow_networks))
    repositories = GitCommand(
        web, timeout_s=settings.git_timeout_s, max_bytes=settings.max_git_bytes, ca_file=settings.git_ca_file
    )
    sealer = Sealer(settings.secret or settings.common.service_secret, "telar/containers/git-token")
    images = ConfiguredImages(engine, settings.images, settings.image_prefix)
    renderer = Renderer(catalog, images, compose, code, settings)
    planner = Planner(catalog, renderer, settings)
    sources = Sources(repositories, sealer)
    deployment = Deployment(
        uow=runtime.uow,
        compose=compose,
        engine=engine,
        code=code,
        planner=planner,
        renderer=renderer,
        repositories=repositories,
        sources=sources,
        settings=settings,
    )
    runtime.run_operations(sagas(deployment, Endings(settings), settings))
    stacks = Stacks(runtime.uow, engine, code, planner, sources, settings, runtime.owners)
    changes = Changes(runtime.uow, engine, code, planner, sources, settings)
    views = Views(engine, Addresses.of(settings))
    runtime.health.add("code", code.check)
    # Without an engine records stay readable and each route says what is missing: no reason to take the service away.
    runtime.health.add("engine", engine.ping, required=False)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await code.prepare()
        await runtime.start()
        runtime.every(settings.sweep_every_s, Sweeper(runtime.uow, code, keep_revisions=settings.keep_revisions).sweep)
        runtime.every(settings.engine_retry_s, Reconciler(runtime.uow, engine, settings).follow)
        try:
            yield
        finally:
            await runtime.close()
            await engine.close()
            await web.aclose()

    return runtime.app(
        title="Telar containers",
        description="Application stacks on a Docker engine: from templates and ZIPs, with their state, logs and URLs.",
        area="stacks",
        routers=[
            api.router(stacks, changes, Files(runtime.uow, code, CodeTree, settings), views, settings),
            legacy_router(stacks, views, settings),
        ],
        lifespan=lifespan,
        streamed=api.streams_its_body,
    )


def _orchestrator(settings: ContainersSettings) -> tuple[DockerEngine, ComposeCommand]:
    is_swarm = settings.orchestrator == "swarm"
    engine = (SwarmEngine if is_swarm else DockerEngine)(settings.docker_host, max_log_streams=settings.max_log_streams)
    return engine, (SwarmCommand if is_swarm else ComposeCommand)(settings.docker_host)


async def migrate(settings: ContainersSettings) -> None:
    """Bring the service's database to the newest schema."""
    await migrations.migrate(settings.database_url, _NAME)
