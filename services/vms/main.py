"""Composition root of the vms service."""

import contextlib
from collections.abc import AsyncIterator, Iterator

from fastapi import FastAPI

from libs.common import migrations
from libs.common.auth import TokenVerifier
from libs.common.bus import Bus
from libs.common.inbox import EventHandler
from libs.common.runtime import SqlRuntime
from libs.common.sealing import Sealer
from services.vms import api, legacy
from services.vms.adapters.exporter import PveCollector
from services.vms.adapters.images import HttpImages
from services.vms.adapters.proxmox import Breakers, ProxmoxCluster
from services.vms.adapters.seeds import NoCloudSeeds
from services.vms.api import console, drift, snapshots
from services.vms.consumers import handlers
from services.vms.domain.cluster import Inventory
from services.vms.domain.network import Rules
from services.vms.domain.placement import Policy
from services.vms.operations import sagas
from services.vms.ports import Images
from services.vms.service import (
    AddressBook,
    Catalog,
    Consoles,
    Drifts,
    DriftWatch,
    Fleet,
    Histories,
    Nodes,
    Snapshots,
    StateSync,
    TemplateDefaults,
    Templates,
    Vmids,
    Vms,
)
from services.vms.settings import VmsSettings

Settings = VmsSettings
_NAME = "vms"


def create_app(
    settings: VmsSettings, *, bus: Bus, verifier: TokenVerifier | None = None, images: Images | None = None
) -> FastAPI:
    """Wire the service; the bus's owner starts and closes it, `verifier` and `images` are given by tests only."""
    known: dict[str, EventHandler] = {}
    runtime = SqlRuntime(_NAME, settings.common, settings.database_url, bus, handlers=known, verifier=verifier)
    clusters = _clusters(settings)
    fleet = Fleet(clusters)
    catalog = Catalog(runtime.uow, fleet, _policy(settings))
    identity = runtime.identity
    images = images or HttpImages(settings.images_url, identity.tokens, identity.http)
    defaults = TemplateDefaults(settings.template_cores, settings.template_memory_mib, settings.template_policy)
    templates = Templates(runtime.uow, fleet, catalog, images, defaults)
    known |= handlers(templates)
    vmids = Vmids(runtime.uow, fleet, first=settings.vmid_first, last=settings.vmid_last, settle_s=settings.settle_s)
    sealer = Sealer(settings.common.service_secret, "telar/vms/guest-password")
    works = sagas(settings, runtime.uow, fleet, catalog, vmids, sealer, NoCloudSeeds(), images)
    runtime.run_operations(works, concurrency=settings.operations_at_once)
    sync = StateSync(runtime.uow, fleet, lag_s=settings.statistics_lag_s)
    networks = Rules(settings.network_bridges, settings.vlan_spans)
    vms = Vms(runtime.uow, fleet, catalog, vmids, sealer, networks=networks, images=images, owners=runtime.owners)
    runtime.metrics.registry.register(_exporter(settings, fleet))
    consoles = _consoles(settings, runtime, fleet, vms)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await runtime.start()
        runtime.every(settings.console_watch_s, consoles.watch)
        runtime.leases.start("vms.states", settings.sync_every_s, sync.run)
        runtime.leases.start("vms.addresses", settings.sync_every_s, _addresses(settings, runtime, fleet).run)
        runtime.leases.start("vms.drift", settings.drift_every_s, _drift_watch(settings, runtime, fleet).run)
        runtime.leases.start("vms.leftovers", settings.sweep_every_s, vmids.sweep)
        try:
            yield
        finally:
            await runtime.close()
            for cluster in clusters:
                await cluster.close()

    return runtime.app(
        title="Telar virtual machines",
        description="Virtual machines on Proxmox VE: templates, placement, creation, change, power and deletion.",
        area="vms",
        routers=[
            console.router(consoles),
            drift.router(Drifts(runtime.uow, fleet, runtime.owners, tag=settings.ownership_tag)),
            snapshots.router(
                Snapshots(runtime.uow, fleet, limit=settings.snapshots_per_vm), Histories(runtime.uow, fleet)
            ),
            api.router(vms, catalog, templates, Nodes(runtime.uow, fleet)),
            legacy.router(vms, consoles),
        ],
        lifespan=lifespan,
    )


async def migrate(settings: VmsSettings) -> None:
    """Bring the service's database to the newest schema."""
    await migrations.migrate(settings.database_url, _NAME)


def _consoles(settings: VmsSettings, runtime: SqlRuntime, fleet: Fleet, vms: Vms) -> Consoles:
    return Consoles(
        runtime.uow,
        fleet,
        vms,
        runtime.identity.revocations,
        ticket_s=settings.console_ticket_s,
        open_s=settings.console_open_s,
        max_s=settings.console_max_s,
        at_once=settings.consoles_at_once,
    )


def _exporter(settings: VmsSettings, fleet: Fleet) -> PveCollector:
    max_age_s = max(60.0, 3 * settings.sync_every_s)

    def seen() -> Iterator[tuple[str, Inventory]]:
        for cluster in fleet:
            known = cluster.seen(max_age_s=max_age_s)
            if known is not None:
                yield cluster.name, known

    return PveCollector(seen, tag=settings.ownership_tag, guests=settings.metrics_guests)


def _drift_watch(settings: VmsSettings, runtime: SqlRuntime, fleet: Fleet) -> DriftWatch:
    return DriftWatch(
        runtime.uow,
        fleet,
        tag=settings.ownership_tag,
        lag_s=settings.statistics_lag_s,
        settle_s=settings.drift_settle_s,
        doubt_s=settings.drift_doubt_s,
    )


def _addresses(settings: VmsSettings, runtime: SqlRuntime, fleet: Fleet) -> AddressBook:
    return AddressBook(
        runtime.uow,
        fleet,
        tag=settings.ownership_tag,
        at_once=settings.addresses_at_once,
        wanting_s=settings.addresses_wanting_s,
        known_s=settings.addresses_known_s,
    )


def _policy(settings: VmsSettings) -> Policy:
    return Policy(
        settings.cpu_ratio,
        settings.memory_ratio,
        settings.memory_reserve_mib,
        settings.disk_reserve_gib,
        pack=settings.placement == "pack",
    )


def _clusters(settings: VmsSettings) -> list[ProxmoxCluster]:
    return [
        ProxmoxCluster(
            cluster,
            timeout_s=settings.request_timeout_s,
            connections=settings.connections,
            task_poll_s=settings.task_poll_s,
            breakers=Breakers(failures=settings.breaker_failures, open_s=settings.breaker_open_s),
        )
        for cluster in settings.clusters
    ]
