"""What a service with a PostgreSQL database stands on, started and stopped in the right order."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import structlog
from fastapi import APIRouter, FastAPI
from starlette.types import Scope

from libs.common import dead_letters_api
from libs.common.accounts import ACCOUNT_EVENT, follow_accounts
from libs.common.app import Lifespan, create_app, streams_nothing
from libs.common.auth import JwksClient, Revocations, ServiceTokens, TokenVerifier, follow_revocations
from libs.common.bus import Bus, check_bus
from libs.common.db import Database, Notifications
from libs.common.errors import Unavailable
from libs.common.events import Event
from libs.common.health import Health
from libs.common.idempotency import SqlIdempotencyStore
from libs.common.inbox import EventHandler, Inbox
from libs.common.leases import Leases
from libs.common.measures import EVERY_S, measure_database, measure_disks
from libs.common.operations import CHANNEL as OPERATIONS_CHANNEL
from libs.common.operations import OperationRunner, Operations, Saga
from libs.common.operations_api import operations_router
from libs.common.outbox import CHANNEL as OUTBOX_CHANNEL
from libs.common.outbox import OutboxRelay, SqlOutboxStore
from libs.common.quotas import Owners
from libs.common.settings import CommonSettings
from libs.common.tasks import cancel
from libs.common.telemetry import Metrics
from libs.common.trust import system_trust
from libs.common.uow import UnitOfWorkFactory

ReadRevocations = Callable[[], Awaitable[Iterable[Mapping[str, Any]]]]

_log = structlog.get_logger()


class Identity:
    """A process's view of who may call it: the gateway's keys, what was revoked, and its own service token."""

    def __init__(self, service: str, settings: CommonSettings, bus: Bus, verifier: TokenVerifier | None = None) -> None:
        self.http = httpx.AsyncClient(verify=system_trust(), trust_env=False, timeout=5)
        self.tokens = ServiceTokens(
            service, gateway_url=settings.gateway_url, secret=settings.service_secret, http=self.http
        )
        jwks = JwksClient(settings.gateway_url.rstrip("/") + "/.well-known/jwks.json", self.http)
        self.verifier = verifier or TokenVerifier(
            jwks, Revocations(), issuer=settings.issuer, audience=settings.audience
        )
        self.revocations = self.verifier.revocations
        self._auth_url = settings.auth_url.rstrip("/")
        self._bus = bus
        self._task: asyncio.Task[None] | None = None

    def start(self, read: ReadRevocations | None = None) -> None:
        """Follow revocations; `read` replaces asking the auth service (auth itself reads its table)."""
        self._task = asyncio.create_task(
            follow_revocations(self.revocations, self._bus, read or self._read_from_auth), name="revocations"
        )

    async def close(self) -> None:
        if self._task is not None:
            await cancel(self._task)
        await self.http.aclose()

    async def knows_user(self, userid: str) -> bool:
        """Whether auth has a user by that external id, name or id; True where it does not say."""
        try:
            headers = await self.tokens.headers()
            answer = await self.http.get(self._auth_url + "/internal/users", params={"userid": userid}, headers=headers)
            answer.raise_for_status()
            return bool(answer.json()["exists"])
        except (Unavailable, httpx.HTTPError, ValueError, KeyError) as error:
            _log.warning("user_not_asked_for", error=type(error).__name__)
            return True

    async def accounts(self, after: str | None) -> list[Event]:
        """Some of auth's accounts, as `follow_accounts` reads them."""
        headers, where = await self.tokens.headers(), {} if after is None else {"after": after}
        answer = await self.http.get(self._auth_url + "/internal/accounts", params=where, headers=headers)
        answer.raise_for_status()
        return [Event.from_json(account.encode()) for account in answer.json()["items"]]

    async def _read_from_auth(self) -> Iterable[Mapping[str, Any]]:
        answer = await self.http.get(self._auth_url + "/internal/revocations", headers=await self.tokens.headers())
        answer.raise_for_status()
        entries: list[dict[str, Any]] = answer.json()["items"]
        return entries


async def repeat(job: Callable[[], Awaitable[None]], every_s: float) -> None:
    """Run a job again and again; its failures are logged and it is run again."""
    while True:
        try:
            await job()
        except Exception as error:  # noqa: BLE001 - the loop outlives any failure of its job
            _log.warning("job_failed", job=getattr(job, "__name__", str(job)), error=type(error).__name__)
        await asyncio.sleep(every_s)


class SqlRuntime:
    """Database, unit of work, outbox, inbox, operations and identity of one service process."""

    def __init__(
        self,
        service: str,
        settings: CommonSettings,
        database_url: str,
        bus: Bus,
        *,
        handlers: Mapping[str, EventHandler],
        verifier: TokenVerifier | None = None,
    ) -> None:
        self.service = service
        self.settings = settings
        self.metrics = Metrics(service)
        self.metrics.registry.register(bus.metrics.registry)
        self.health = Health()
        self.database = Database(
            database_url, pool_size=settings.database_pool_size, application_name=f"telar-{service}"
        )
        self.notifications = Notifications(self.database, (OUTBOX_CHANNEL, OPERATIONS_CHANNEL))
        self.uow = UnitOfWorkFactory(self.database, source=f"/telar/{service}")
        self.identity = Identity(service, settings, bus, verifier)
        self.owners = Owners(self.uow, self.identity.knows_user)
        self.idempotency = SqlIdempotencyStore(self.database)
        self.inbox = Inbox(service, bus, self.uow, handlers)
        self.outbox = SqlOutboxStore(self.database)
        self.leases = Leases(self.database)
        self.disks: dict[str, Path] = {"data": settings.data_dir}
        """Folders whose free space is told, each by a name."""
        self.runner: OperationRunner | None = None
        self._relay = OutboxRelay(self.outbox, bus, notifications=self.notifications)
        self._bus = bus
        self._handlers = handlers
        self._tasks: list[asyncio.Task[None]] = []
        self.health.add("database", self.database.ping)
        self.health.add("bus", partial(check_bus, bus))

    def run_operations(self, sagas: Sequence[Saga], *, concurrency: int = 64) -> OperationRunner:
        """Make the operations runner of this service; `start` starts it with the rest."""
        self.runner = OperationRunner(
            service=self.service,
            uow=self.uow,
            notifications=self.notifications,
            sagas=sagas,
            metrics=self.metrics,
            concurrency=concurrency,
        )
        return self.runner

    def app(
        self,
        *,
        title: str,
        description: str,
        area: str,
        routers: Sequence[APIRouter],
        lifespan: Lifespan,
        streamed: Callable[[Scope], bool] = streams_nothing,
    ) -> FastAPI:
        """Build the service's app over this runtime: its routers, and those of operations and dead letters.

        `area` is the scope that a key needs for its operations.
        """
        operations = self.runner.operations if self.runner is not None else Operations(self.uow, ())
        return create_app(
            service=self.service,
            title=title,
            description=description,
            settings=self.settings,
            metrics=self.metrics,
            checks=self.health,
            verifier=self.identity.verifier,
            idempotency=self.idempotency,
            routers=[
                *routers,
                operations_router(operations, self.notifications, area=area),
                dead_letters_api.router(self.service, self.inbox),
            ],
            lifespan=lifespan,
            streamed=streamed,
        )

    async def start(self, *, read_revocations: ReadRevocations | None = None) -> None:
        await self.notifications.start()
        self.identity.start(read_revocations)
        await self.inbox.start()
        await self._relay.start()
        if (keep_account := self._handlers.get(ACCOUNT_EVENT)) is not None:
            keep = partial(self._keep_accounts, keep_account)
            following = follow_accounts(self._bus, self.service, self.identity.accounts, keep)
            self._tasks.append(asyncio.create_task(following, name="accounts"))
        if self.runner is not None:
            await self.runner.start()
        self.every(EVERY_S, self._measure)
        self.every(3600, self._sweep)

    async def close(self) -> None:
        """Stop taking work, let what is under way reach a safe point, let go of everything but the bus."""
        self.health.draining = True
        await cancel(*self._tasks)
        if self.runner is not None:
            await self.runner.close()
        await self.inbox.close()
        await self.leases.close()
        await self._relay.close()
        await self.identity.close()
        await self.notifications.close()
        await self.database.close()

    def every(self, seconds: float, job: Callable[[], Awaitable[None]]) -> None:
        """Repeat a job on every replica until closed."""
        self._tasks.append(asyncio.create_task(repeat(job, seconds), name=f"{self.service}-every-{seconds}s"))

    async def _keep_accounts(self, keep: EventHandler, accounts: Sequence[Event]) -> None:
        async with self.uow() as uow:
            for account in accounts:
                await keep(uow, account)
            await uow.commit()

    async def _measure(self) -> None:
        await asyncio.to_thread(measure_disks, self.disks, self.metrics)
        await measure_database(self.database, self.outbox, self.metrics)

    async def _sweep(self) -> None:
        await self.inbox.sweep()
        await self.idempotency.sweep()
        if self.runner is not None:
            await self.runner.operations.sweep()
