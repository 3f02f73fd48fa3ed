"""Composition root of the images service."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from libs.common import migrations
from libs.common.auth import TokenVerifier
from libs.common.bus import Bus
from libs.common.clock import SystemClock
from libs.common.runtime import SqlRuntime
from services.images import api
from services.images.adapters.blob_stores import blob_store
from services.images.adapters.decompression import decompressor_for
from services.images.adapters.http_source import HttpSource
from services.images.adapters.inspection import StreamInspector
from services.images.adapters.links import LinkTokens
from services.images.adapters.qemu_img import Limits, QemuImg
from services.images.adapters.work_folders import WorkFolders
from services.images.consumers import handlers
from services.images.operations import sagas
from services.images.service import (
    Catalog,
    Conversions,
    Downloads,
    Imports,
    Integrity,
    IntegrityMetrics,
    Provenance,
    ResumableUploads,
    Sharing,
    Sweeper,
    Uploads,
    Uses,
    Verification,
)
from services.images.settings import ImagesSettings

Settings = ImagesSettings
_NAME = "images"


def create_app(settings: ImagesSettings, *, bus: Bus, verifier: TokenVerifier | None = None) -> FastAPI:
    """Wire the service; the bus's owner starts and closes it, `verifier` is given by tests only."""
    runtime = SqlRuntime(_NAME, settings.common, settings.database_url, bus, handlers=handlers(), verifier=verifier)
    blobs = blob_store(settings)
    runtime.health.add("blobs", blobs.check)
    if not (settings.blob_url or "").startswith("s3:"):
        runtime.disks["blobs"] = settings.blob_folder
    catalog = Catalog(runtime.uow, blobs)
    tokens = LinkTokens(settings.common.service_secret.get_secret_value())
    sweeper = Sweeper(runtime.uow, blobs, rejected_days=settings.rejected_days)
    source, folders = _source(settings), WorkFolders(settings.work_folder)
    imports = Imports(runtime.uow, blobs, source, decompressor_for, settings)
    converter = QemuImg(settings.qemu_img, folders, blobs, _limits(settings))
    conversions = Conversions(runtime.uow, blobs, converter, catalog, settings)
    verification = Verification(runtime.uow, blobs, StreamInspector, settings)
    integrity = Integrity(runtime.uow, blobs, IntegrityMetrics(runtime.metrics.registry), settings)
    uses = Uses(runtime.uow)
    runtime.run_operations(sagas(verification, imports, conversions, integrity, settings))

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await blobs.prepare()
        await folders.prepare()
        await runtime.start()
        runtime.every(settings.sweep_every_s, sweeper.sweep)
        runtime.every(settings.sweep_every_s, folders.sweep)
        runtime.every(3600, uses.sweep)
        runtime.leases.start("images.rehash", settings.rehash_every_s, integrity.check_due)
        try:
            yield
        finally:
            await runtime.close()
            await source.close()

    app = runtime.app(
        title="Telar images",
        description="OS images: uploads that are inspected while they stream, a catalog, downloads and statistics.",
        area="images",
        routers=[
            api.router(
                catalog,
                Uploads(runtime.uow, blobs, StreamInspector, settings),
                ResumableUploads(runtime.uow, blobs, settings),
                Downloads(runtime.uow, catalog, blobs, tokens, clock=SystemClock()),
                imports,
                conversions,
                Sharing(runtime.uow),
                Provenance(runtime.uow),
                integrity,
                settings,
            ),
        ],
        lifespan=lifespan,
        streamed=api.streams_its_body,
    )
    app.add_middleware(api.TusResponses)
    return app


def _source(settings: ImagesSettings) -> HttpSource:
    return HttpSource(
        settings.common.outbound_allow_networks,
        max_file_size=settings.max_file_size,
        min_rate_bytes_per_s=settings.import_min_rate_bytes_per_s,
    )


def _limits(settings: ImagesSettings) -> Limits:
    return Limits(settings.conversion_memory_bytes, settings.conversion_cpu_s, settings.conversion_timeout_s)


async def migrate(settings: ImagesSettings) -> None:
    """Bring the service's database to the newest schema."""
    await migrations.migrate(settings.database_url, _NAME)
