"""The app factory: every service's FastAPI app gets the same middleware, problems, health, metrics and docs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI, Response
from fastapi.telemetry import TelemetryConfig
from starlette.types import Scope

from libs.common import docs, health, openapi, problems
from libs.common.auth import AuthenticationMiddleware, TokenVerifier
from libs.common.errors import NotFound
from libs.common.idempotency import IdempotencyMiddleware, IdempotencyStore
from libs.common.middleware import BodyLimitMiddleware, RequestContextMiddleware
from libs.common.settings import CommonSettings
from libs.common.telemetry import Metrics

VERSION = "0.1.0"
TELEMETRY: TelemetryConfig = {"metrics": False, "logs": False, "operation_spans": False}
"""FastAPI traces requests; metrics and logs are ours, and a span per dependency tells nobody anything."""
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def streams_nothing(_scope: Scope) -> bool:
    return False


def create_app(
    *,
    service: str,
    title: str,
    description: str,
    settings: CommonSettings,
    metrics: Metrics,
    checks: health.Health,
    verifier: TokenVerifier | None,
    idempotency: IdempotencyStore | None,
    routers: Sequence[APIRouter],
    lifespan: Lifespan,
    streamed: Callable[[Scope], bool] = streams_nothing,
    documented: bool = True,
) -> FastAPI:
    """Build an app; `streamed` names the requests whose handlers read the body in pieces and bound it.

    Without a `verifier` whoever calls the app has set the caller's identity (the gateway's entry); an app that is not
    `documented` brings pages of documentation and problems of its own.
    """
    app = FastAPI(
        title=title,
        description=description,
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if documented else None,
        lifespan=lifespan,
        telemetry=TELEMETRY,
        generate_unique_id_function=lambda route: f"{service}_{route.name}",
    )
    app.state.gateway_networks = settings.gateway_networks
    # The last one added is the outermost.
    if idempotency is not None:
        app.add_middleware(IdempotencyMiddleware, store=idempotency, secret=settings.service_secret)
    if verifier is not None:
        app.add_middleware(AuthenticationMiddleware, verifier=verifier)
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes, streamed=streamed)
    app.add_middleware(RequestContextMiddleware, service=service, metrics=metrics)
    problems.install(app, metrics)
    health.install(app, checks, metrics, settings.metrics_allow_networks)
    if documented:
        docs.install(app)
        install_problem_pages(app)
    openapi.install(app)
    for router in routers:
        app.include_router(router)
    return app


def install_problem_pages(app: FastAPI) -> None:
    @app.get("/problems/{slug}", include_in_schema=False)
    async def problem_page(slug: str) -> Response:
        page = problems.problem_page(slug)
        if page is None:
            raise NotFound("There is no such problem type")
        return page
