"""Liveness, readiness with named checks, and metrics; /livez never asks a dependency."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from libs.common.errors import NotFound, TelarError
from libs.common.peers import UNKNOWN, is_within
from libs.common.settings import Networks
from libs.common.telemetry import Metrics

Check = Callable[[], Awaitable[None]]
"""Raises if the thing it asks about does not work."""
CHECK_TIMEOUT_S = 2.0
_NOT_READY: dict[str, Any] = {"description": "A named check fails", "content": {"application/json": {}}}


class Health:
    """Named readiness checks; `draining` makes the process not ready while it still serves what it has."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._optional: set[str] = set()
        self.draining = False

    def add(self, name: str, check: Check, *, required: bool = True) -> None:
        """Report a check; one that is not `required` is shown, but the process is ready without it."""
        self._checks[name] = check
        if not required:
            self._optional.add(name)

    async def report(self) -> tuple[bool, dict[str, str]]:
        """Run all checks at once: whether the required ones are well, and each one's `ok` or what is wrong."""
        results = await asyncio.gather(*(self._run(check) for check in self._checks.values()))
        report = dict(zip(self._checks, results, strict=True))
        if self.draining:
            report["process"] = "draining"
        return all(result == "ok" for name, result in report.items() if name not in self._optional), report

    async def _run(self, check: Check) -> str:
        try:
            await asyncio.wait_for(check(), CHECK_TIMEOUT_S)
        except TimeoutError:
            return "no answer in time"
        except TelarError as error:
            return error.slug
        except Exception as error:  # noqa: BLE001 - a check may fail in any way; its kind is the report
            return type(error).__name__
        return "ok"


def install(app: FastAPI, health: Health, metrics: Metrics, metrics_networks: Networks) -> None:
    """Add /livez, /readyz and /metrics; metrics answer only the given networks."""

    @app.get("/livez", tags=["health"])
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], responses={503: _NOT_READY})
    async def readyz() -> Response:
        well, checks = await health.report()
        return JSONResponse({"status": "ok" if well else "unavailable", "checks": checks}, 200 if well else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics_page(request: Request) -> Response:
        # Whom a proxy on this very host speaks for must be allowed, too; a made-up name here only shuts one out.
        forwarded = ",".join(request.headers.getlist("x-forwarded-for"))
        callers = [request.client.host if request.client else UNKNOWN, *filter(None, forwarded.split(","))]
        if not all(is_within(caller.strip(), metrics_networks) for caller in callers):
            raise NotFound("Metrics are served to TELAR_METRICS_ALLOW_NETWORKS only")
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
