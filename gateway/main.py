"""Composition root of the gateway."""

import asyncio
from collections.abc import AsyncIterator, Mapping
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
from gateway.routes import RouteTable
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
from libs.common.telemetry import Metrics

Settings = GatewaySettings
_QUEUES_EVERY_S = 15.0

_log = structlog.get_logger()


def create_app(settings: GatewaySettings, *, bus: Bus) -> ASGIApp:
    """Wire the gateway; the result is served with `gateway.server.server_config`."""
    common = settings.common
    metrics = Metrics("gateway")
    metrics.registry.register(bus.metrics.registry)
    checks = health.Health()
    checks.add("bus", partial(check_bus, bus))
    keys = KeyRing(settings.keys_path())
    revocations = Revocations()
    verifier = TokenVerifier(keys, revocations, issuer=common.issuer, audience=common.audience)
    issuer = TokenIssuer(keys, issuer=common.issuer, audience=common.audience, lifetime_s=settings.token_seconds)
    urls = settings.upstream_urls()
    upstreams = {
        name: Upstream(name, bases, requests=metrics.requests.labels("gateway", "*", f"relay:{name}", "relayed"))
        for name, bases in urls.items()
        if bases
    }
    transport = ReplicaTransport(upstream.replicas for upstream in upstreams.values())
    http = httpx.AsyncClient(transport=transport, trust_env=False, timeout=httpx.Timeout(30, connect=CONNECT_TIMEOUT_S))
    auth = AuthClient(settings.auth_urls, issuer, http)
    sessions = Sessions(auth, issuer, verifier, key_cache_s=settings.key_cache_seconds)
    limits = Limits(settings)
    proxies = TrustedProxies(str(network) for network in settings.trusted_proxies)
    sockets = WebSocketRelay(proxies)
    services = Services(urls, http)
    events, logs = Feed(settings.event_history), Feed(settings.log_history)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        keys.ensure()
        await _feed(bus, events, logs)
        await _cut_revoked(bus, revocations, upstreams, sockets)
        following = [asyncio.create_task(follow_revocations(revocations, bus, auth.revocations), name="revocations")]
        following += [asyncio.create_task(upstream.follow_replicas()) for upstream in upstreams.values()]
        following.append(asyncio.create_task(_watch_queues(bus, tuple(urls)), name="queues"))
        _log.info("gateway_ready", service="gateway")
        yield
        checks.draining = True
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        for upstream in upstreams.values():
            upstream.close()
        await http.aclose()

    local = create_local_app(
        service="gateway",
        title="Telar",
        description="Images, virtual machines, stacks and a picture fetcher behind one identity.",
        settings=common,
        metrics=metrics,
        checks=checks,
        verifier=None,
        idempotency=None,
        routers=(
            api.about_router(services),
            api.session_router(sessions, limits),
            api.identity_router(keys, issuer, limits, common.service_secret),
            api.feeds_router(events, logs, revocations),
            api.aggregate_router(services),
            api.older_clients_router(services),
        ),
        lifespan=lifespan,
        documented=False,
    )
    docs.install(local, docs.OpenApi(local, urls, http))
    entry = GatewayEntry(
        local=local,
        routes=RouteTable(),
        upstreams=upstreams,
        relay=Relay(proxies),
        sockets=sockets,
        proxies=proxies,
        verifier=verifier,
        sessions=sessions,
        limits=limits,
        metrics=metrics,
        origins=settings.cors_origins,
    )
    return TracedEntry(entry) if common.otlp_endpoint else entry


async def _watch_queues(bus: Bus, names: tuple[str, ...]) -> None:
    """Tell how each service's queue stands: a service that is down cannot."""
    while True:
        try:
            bus.metrics.show(await bus.queues(names))
        except BusUnavailable as error:
            _log.warning("queues_not_seen", error=error.slug)
        except Exception:  # noqa: BLE001 - the loop outlives any surprise; it is logged with its traceback
            _log.exception("queues_not_seen")
        await asyncio.sleep(_QUEUES_EVERY_S)


async def _feed(bus: Bus, events: Feed, logs: Feed) -> None:
    """Fill the two feeds from the bus."""

    async def on_event(event: Event) -> None:
        events.publish(Entry(id=event.id, item=event, text=event.to_json().decode(), name=event.type))

    start, numbers = uuid7().hex[:12], count(1)

    def on_log(line: bytes) -> None:
        entry = log_entry(line, f"{start}-{next(numbers)}")
        if entry is not None:
            logs.publish(entry)

    await bus.listen(("#",), on_event)
    bus.on_broadcast(LOG_CHANNEL, on_log)


async def _cut_revoked(
    bus: Bus, revocations: Revocations, upstreams: Mapping[str, Upstream], sockets: WebSocketRelay
) -> None:
    """End what a revoked session or user has open: downloads, streams, consoles."""

    async def on_revoked(event: Event) -> None:
        apply_revocation(revocations, event)
        for entry in event.data.get("revokes") or ():
            scope, subject = str(entry["scope"]), str(entry["id"])

            def belongs(session: str, scope: str = scope, subject: str = subject) -> bool:
                user_id, _, session_id = session.partition(" ")
                return subject == (user_id if scope == "user" else session_id)

            for upstream in upstreams.values():
                upstream.end_sessions(belongs, Unauthenticated("The session or key has been revoked; log in again"))
            sockets.end_sessions(belongs)

    await bus.listen(REVOKING_EVENTS, on_revoked)
