"""The older picture API's one route that is not canonical: its metrics. All its other calls are served as they are."""

from collections.abc import Callable

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from libs.common.auth import CurrentUser, requires_scope


def router(metrics_text: Callable[[], bytes]) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["older clients"], dependencies=[requires_scope("fetch")])

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def fetch_metrics(_user: CurrentUser) -> Response:
        """The fetcher's own series in Prometheus' text format; /metrics has all of them for the scraper."""
        return Response(metrics_text(), media_type=CONTENT_TYPE_LATEST)

    return routes
