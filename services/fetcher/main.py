"""The fetcher's composition root: settings in, a FastAPI app out."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from fastapi import FastAPI

from libs.common import app as common_app
from libs.common import dead_letters_api
from libs.common.accounts import follow_accounts
from libs.common.auth import Principal, TokenVerifier
from libs.common.bus import Bus, check_bus
from libs.common.clock import SystemClock
from libs.common.events import Event
from libs.common.health import Health
from libs.common.http import AddressPolicy, GuardedClient, Limits
from libs.common.ids import uuid7
from libs.common.measures import measure_disks
from libs.common.outbox import OutboxRelay
from libs.common.runtime import Identity, repeat
from libs.common.tasks import cancel
from libs.common.telemetry import Metrics
from services.fetcher import legacy
from services.fetcher.adapters.decoders import DecoderPool
from services.fetcher.adapters.robots import RobotsFiles
from services.fetcher.adapters.source import MongoSource
from services.fetcher.adapters.storage import BucketStore, FolderStore
from services.fetcher.adapters.web import HttpDownloader
from services.fetcher.api import downloads_router, jobs_router
from services.fetcher.consumers import handlers
from services.fetcher.domain.jobs import UNFINISHED
from services.fetcher.domain.troubles import Manners
from services.fetcher.operations import (
    Committer,
    ItemWorker,
    JobLease,
    JobRunner,
    Planner,
    Politeness,
    Purger,
    Rules,
    Scheduler,
    WriteBack,
)
from services.fetcher.operations.metrics import FetchMetrics
from services.fetcher.ports import PictureStore
from services.fetcher.repository import (
    MongoAccounts,
    MongoDomains,
    MongoIdempotencyStore,
    MongoInbox,
    MongoItems,
    MongoJobs,
    MongoOutboxStore,
    MongoPermits,
    MongoStore,
    indexes,
)
from services.fetcher.service import Allowed, JobCreation, JobService, Lifecycle, Pace
from services.fetcher.settings import FetcherSettings

SERVICE = "fetcher"
Settings = FetcherSettings
_MEASURE_S = 5.0
_SWEEP_S = 3600.0


class _Fetcher:
    """All parts of one fetcher process, started and stopped in the right order."""

    def __init__(self, settings: FetcherSettings, bus: Bus, verifier: TokenVerifier | None) -> None:
        self._bus = bus
        self.metrics = Metrics(SERVICE)
        self.metrics.registry.register(bus.metrics.registry)
        self.fetch_metrics = FetchMetrics(self.metrics.registry)
        self.health = Health()
        self.identity = Identity(SERVICE, settings.common, bus, verifier)
        self.store = MongoStore(settings.mongo_uri, settings.mongo_database, timeout_s=settings.mongo_timeout_s)
        self.source = MongoSource(
            settings.source_uri or settings.mongo_uri,
            max_time_ms=settings.source_max_time_ms,
            timeout_s=settings.mongo_timeout_s,
        )
        self.pictures = _picture_store(settings)
        self._disks = {} if settings.bucket else {"pictures": settings.storage_root}
        self.idempotency = MongoIdempotencyStore(self.store)
        self.accounts = MongoAccounts(self.store)
        self.inbox = MongoInbox(SERVICE, bus, self.store, handlers(self.accounts))
        self.permits, self.domains = MongoPermits(self.store), MongoDomains(self.store)
        self.outbox = MongoOutboxStore(self.store)
        self._relay = OutboxRelay(self.outbox, bus, poll_s=0.2)
        self._client = _client(settings)
        self._decoders = DecoderPool(
            processes=settings.decoders,
            max_pixels=settings.max_pixels,
            max_frames=settings.max_frames,
            timeout_s=settings.decode_timeout_s,
        )
        jobs, items = MongoJobs(self.store, on_event=self._relay.wake), MongoItems(self.store)
        self.job_store = jobs
        lifecycle = Lifecycle(jobs, items, self.accounts, SystemClock(), source=f"/telar/{SERVICE}")
        self.runner = self._runner(settings, jobs, items, lifecycle)
        self.jobs = JobService(
            jobs=jobs,
            items=items,
            lifecycle=lifecycle,
            store=self.pictures,
            wake=self.runner.wake,
        )
        self.creation = JobCreation(
            jobs=jobs,
            items=items,
            lifecycle=lifecycle,
            source=self.source,
            store=self.pictures,
            allowed=_allowed(settings),
            wake=self.runner.wake,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self.health.add("job_store", self.store.ping)
        self.health.add("bus", partial(check_bus, bus))

    def _runner(self, settings: FetcherSettings, jobs: MongoJobs, items: MongoItems, lifecycle: Lifecycle) -> JobRunner:
        holder, lease_ms = uuid7().hex, int(settings.lease_s * 1000)
        downloader = HttpDownloader(
            self._client,
            spool=lambda: self.pictures.spool,
            partials=lambda: self.pictures.partials,
            max_bytes=settings.max_picture_bytes,
            robots=RobotsFiles(self._client, deadline_s=min(30.0, settings.download_deadline_s)),
        )
        worker = ItemWorker(
            downloader,
            self._decoders,
            self.pictures,
            retry_base_s=settings.retry_base_s,
            retry_cap_s=settings.retry_cap_s,
            now_ms=lifecycle.now_ms,
        )
        self.scheduler = Scheduler(
            items,
            worker,
            self._politeness(settings, holder, lifecycle.now_ms),
            Rules(
                max_downloads=settings.max_concurrent_downloads,
                max_per_domain=settings.max_per_domain,
                max_unwritten=settings.max_unwritten,
                rate_per_domain=settings.rate_per_domain,
                max_attempts=settings.max_attempts,
            ),
            holder=holder,
            lease_ms=lease_ms,
            now_ms=lifecycle.now_ms,
        )
        lease = JobLease(jobs, holder=holder, lease_ms=lease_ms, now_ms=lifecycle.now_ms)
        runner = JobRunner(
            jobs,
            items,
            lifecycle,
            Planner(lease, items, self.source, self.pictures, on_items=self.scheduler.look_again),
            WriteBack(lease, items, self.source),
            Purger(lease, items, self.pictures),
            self.scheduler,
            lease_s=settings.lease_s,
        )
        self.committer = Committer(
            items,
            self.pictures,
            worker,
            holder=holder,
            on_outcome=self.fetch_metrics.count,
            on_room=runner.room,
            on_full=runner.pause_full,
        )
        return runner

    def _politeness(self, settings: FetcherSettings, holder: str, now_ms: Callable[[], int]) -> Politeness:
        manners = Manners(
            per_domain=settings.max_per_domain,
            backoff_s=settings.retry_base_s * 4,
            breaker_s=settings.breaker_s,
            cap_s=settings.retry_cap_s,
            dead_s=settings.dead_s,
        )
        return Politeness(
            self.permits,
            self.domains,
            manners,
            holder=holder,
            lease_ms=int(settings.lease_s * 1000),
            max_downloads=settings.max_concurrent_downloads,
            now_ms=now_ms,
        )

    def may_go_on(self, principal: Principal) -> bool:
        """Whether the token behind an open stream is still good."""
        return principal.expires_at > time.time() and not self.identity.revocations.refuses(principal)

    async def start(self) -> None:
        await self.pictures.start()
        await indexes.create(self.store.database)
        self.identity.start()
        await self.inbox.start()
        await self._relay.start()
        self.runner.start(self.committer)
        self._tasks = [
            asyncio.create_task(repeat(self._measure, _MEASURE_S), name="fetcher-measure"),
            asyncio.create_task(repeat(self._sweep, _SWEEP_S), name="fetcher-sweep"),
            asyncio.create_task(
                follow_accounts(self._bus, SERVICE, self.identity.accounts, self._keep_accounts), name="accounts"
            ),
        ]

    async def close(self) -> None:
        """Stop taking work, give back what is under way, let go of everything but the bus."""
        self.health.draining = True
        await cancel(*self._tasks)
        await self.runner.close()
        await self._decoders.close()
        await self._client.aclose()
        await self.pictures.close()
        await self._relay.close()
        await self.identity.close()
        self.source.close()
        self.store.close()

    async def _keep_accounts(self, accounts: Sequence[Event]) -> None:
        for account in accounts:
            await self.accounts.on_user_event(account)

    async def _measure(self) -> None:
        waiting, lag_s = await self.outbox.lag()
        self.metrics.outbox_waiting.labels(SERVICE).set(waiting)
        self.metrics.outbox_lag_seconds.labels(SERVICE).set(lag_s)
        self.metrics.dead_letters_kept.labels(SERVICE).set(await self.inbox.count_dead_letters())
        await asyncio.to_thread(measure_disks, self._disks, self.metrics)
        self.fetch_metrics.running.set(self.scheduler.running)
        self.fetch_metrics.waiting.set(self.scheduler.waiting)
        self.fetch_metrics.troubled.set(len(await self.domains.in_trouble()))
        self.fetch_metrics.jobs(Counter(job.state for job in await self.job_store.in_states(UNFINISHED)))

    async def _sweep(self) -> None:
        await self.inbox.sweep()
        await self.idempotency.sweep()
        now_ms = self.store.now_ms()
        await self.permits.sweep(now_ms)
        await self.domains.sweep(now_ms)


def create_app(settings: FetcherSettings, *, bus: Bus, verifier: TokenVerifier | None = None) -> FastAPI:
    """Build the app; the bus's owner starts and closes it. Must run inside the event loop that serves."""
    fetcher = _Fetcher(settings, bus, verifier)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await fetcher.start()
        try:
            yield
        finally:
            await fetcher.close()

    return common_app.create_app(
        service=SERVICE,
        title="Telar fetcher",
        description="Downloads the pictures that MongoDB documents point to, as jobs.",
        settings=settings.common,
        metrics=fetcher.metrics,
        checks=fetcher.health,
        verifier=fetcher.identity.verifier,
        idempotency=fetcher.idempotency,
        routers=[
            downloads_router(fetcher.creation),
            jobs_router(fetcher.jobs, fetcher.may_go_on),
            legacy.router(fetcher.fetch_metrics.text),
            dead_letters_api.router(SERVICE, fetcher.inbox),
        ],
        lifespan=lifespan,
    )


async def migrate(settings: FetcherSettings) -> None:
    """Make the job store's indexes."""
    store = MongoStore(settings.mongo_uri, settings.mongo_database)
    try:
        await indexes.create(store.database)
    finally:
        store.close()


def _picture_store(settings: FetcherSettings) -> PictureStore:
    if settings.bucket is None:
        return FolderStore(settings.storage_root, min_free_bytes=settings.min_free_bytes)
    return BucketStore(settings.bucket, settings.common.data_dir / "fetcher-spool")


def _allowed(settings: FetcherSettings) -> Allowed:
    pace = Pace(
        at_once=settings.max_concurrent_downloads,
        per_domain=settings.max_per_domain,
        rate_per_domain=settings.rate_per_domain,
    )
    return Allowed(
        own_database=settings.mongo_database,
        databases=settings.readable_databases,
        write_back=settings.write_back,
        pace=pace,
    )


def _client(settings: FetcherSettings) -> GuardedClient:
    limits = Limits(
        max_bytes=settings.max_picture_bytes,
        max_decoded_bytes=settings.max_picture_bytes,
        total_deadline_s=settings.download_deadline_s,
        min_rate_bytes_per_s=settings.min_rate_bytes_per_s,
    )
    policy = AddressPolicy(settings.common.outbound_allow_networks)
    return GuardedClient(policy, limits=limits, user_agent="Telar-Fetcher")
