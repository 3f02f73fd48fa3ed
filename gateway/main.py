"""Composition root of the gateway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count

import httpx
import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp

from gateway import api, docs
from gateway.aggregate import Services
from gateway.entry import GatewayEntry
from gateway.feeds import Entry, Feed, log_entry
from gateway.limits import Limits
from gateway.proxy import CONNECT_TIMEOUT_S, Relay, ReplicaTransport, TrustedProxies, Upstream
from gateway.sessions import AuthClient, Sessions
from gateway.settings import GatewaySettings
from gateway.streams import WebSocketRelay
from gateway.tokens import KeyRing, TokenIssuer
from gateway.tracing import TracedEntry
from libs.common import health
from libs.common.app import create_app as create_local_app
from libs.common.auth import REVOKING_EVENTS, Revocations, TokenVerifier, apply_revocation, follow_revocations
from libs.common.bus import Bus, BusUnavailable, check_bus
from libs.common.errors import Unauthenticated
from libs.common.events import Event
from libs.common.ids import uuid7
from libs.common.logging import LOG_CHANNEL
from libs.common.tasks import cancel
from libs.common.telemetry import Metrics

Settings = GatewaySettings
_QUEUES_EVERY_S = 15.0

_log = structlog.get_logger()


class _Gateway:
    """All parts of the gateway's process."""

    def __init__(self, settings: GatewaySettings, bus: Bus) -> None:
        common = settings.common
        self.settings = settings
        self.bus = bus
        self.metrics = Metrics("gateway")
        self.metrics.registry.register(bus.metrics.registry)
        self.checks = health.Health()
        self.checks.add("bus", partial(check_bus, bus))
        self.keys = KeyRing(settings.keys_path())
        self.revocations = Revocations()
        self.verifier = TokenVerifier(self.keys, self.revocations, issuer=common.issuer, audience=common.audience)
        self.issuer = TokenIssuer(
            self.keys, issuer=common.issuer, audience=common.audience, lifetime_s=settings.token_seconds
        )
        self.urls = settings.upstream_urls()
        self.upstreams = {
            name: Upstream(
                name, bases, requests=self.metrics.requests.labels("gateway", "*", f"relay:{name}", "relayed")
            )
            for name, bases in self.urls.items()
            if bases
        }
        self.http = httpx.AsyncClient(
            transport=ReplicaTransport(upstream.replicas for upstream in self.upstreams.values()),
            trust_env=False,
            timeout=httpx.Timeout(30, connect=CONNECT_TIMEOUT_S),
        )
        self.auth = AuthClient(settings.auth_urls, self.issuer, self.http)
        self.sessions = Sessions(self.auth, self.issuer, self.verifier, key_cache_s=settings.key_cache_seconds)
        self.limits = Limits(settings)
        self.proxies = TrustedProxies(str(network) for network in settings.trusted_proxies)
        self.sockets = WebSocketRelay(self.proxies)
        self.events, self.logs = Feed(settings.event_history), Feed(settings.log_history)

    def entry(self) -> GatewayEntry:
        return GatewayEntry(
            local=self._local(),
            upstreams=self.upstreams,
            relay=Relay(self.proxies),
            sockets=self.sockets,
            proxies=self.proxies,
            verifier=self.verifier,
            sessions=self.sessions,
            limits=self.limits,
            metrics=self.metrics,
            origins=self.settings.cors_origins,
        )

    def _local(self) -> FastAPI:
        """The app behind the routes that the gateway answers itself."""
        common = self.settings.common
        services = Services(self.urls, self.http)
        local = create_local_app(
            service="gateway",
            title="Telar",
            description="Images, virtual machines, stacks and a picture fetcher behind one identity.",
            settings=common,
            metrics=self.metrics,
            checks=self.checks,
            verifier=None,
            idempotency=None,
            routers=(
                api.about_router(services),
                api.session_router(self.sessions, self.limits),
                api.identity_router(self.keys, self.issuer, self.limits, common.service_secret),
                api.feeds_router(self.events, self.logs, self.revocations),
                api.aggregate_router(services),
                api.older_clients_router(services),
            ),
            lifespan=self._lifespan,
            documented=False,
        )
        docs.install(local, docs.OpenApi(local, self.urls, self.http))
        return local

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        self.keys.ensure()
        await self._feed()
        await self._cut_revoked()
        following = [
            asyncio.create_task(follow_revocations(self.revocations, self.bus, self.auth.revocations)),
            asyncio.create_task(self.limits.share(self.bus)),
            asyncio.create_task(self._watch_queues()),
            *(asyncio.create_task(upstream.follow_replicas()) for upstream in self.upstreams.values()),
        ]
        _log.info("gateway_ready", service="gateway")
        yield
        self.checks.draining = True
        await cancel(*following)
        for upstream in self.upstreams.values():
            upstream.close()
        await self.http.aclose()

    async def _watch_queues(self) -> None:
        """Tell how each service's queue stands: a service that is down cannot."""
        while True:
            try:
                self.bus.metrics.show(await self.bus.queues(tuple(self.urls)))
            except BusUnavailable as error:
                _log.warning("queues_not_seen", error=error.slug)
            except Exception:  # noqa: BLE001 - the loop outlives any surprise; it is logged with its traceback
                _log.exception("queues_not_seen")
            await asyncio.sleep(_QUEUES_EVERY_S)

    async def _feed(self) -> None:
        """Fill the two feeds from the bus."""

        async def on_event(event: Event) -> None:
            apply_revocation(self.revocations, event)  # before it is told: other listeners may hear of it later
            self.events.publish(Entry(id=event.id, item=event, text=event.to_json().decode(), name=event.type))

        start, numbers = uuid7().hex[:12], count(1)

        def on_log(line: bytes) -> None:
            entry = log_entry(line, f"{start}-{next(numbers)}")
            if entry is not None:
                self.logs.publish(entry)

        await self.bus.listen(("#",), on_event)
        self.bus.on_broadcast(LOG_CHANNEL, on_log)

    async def _cut_revoked(self) -> None:
        """End what a revoked session or user has open: downloads, streams, consoles.

        Not what auth is about to answer: it is the answer to the very call that revoked, such as a change of password.
        """
        cut_off = [upstream for name, upstream in self.upstreams.items() if name != "auth"]

        async def on_revoked(event: Event) -> None:
            apply_revocation(self.revocations, event)
            for entry in event.data.get("revokes") or ():
                scope, subject = str(entry["scope"]), str(entry["id"])

                def belongs(session: str, scope: str = scope, subject: str = subject) -> bool:
                    user_id, _, session_id = session.partition(" ")
                    return subject == (user_id if scope == "user" else session_id)

                for upstream in cut_off:
                    upstream.end_sessions(belongs, Unauthenticated("The session or key has been revoked; log in again"))
                self.sockets.end_sessions(belongs)

        await self.bus.listen(REVOKING_EVENTS, on_revoked)


def create_app(settings: GatewaySettings, *, bus: Bus) -> ASGIApp:
    """Wire the gateway; the result is served with `gateway.server.server_config`."""
    entry = _Gateway(settings, bus).entry()
    return TracedEntry(entry) if settings.common.otlp_endpoint else entry
