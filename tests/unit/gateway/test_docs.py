"""The documentation of all services, beside some that do not answer, or not with a document."""

import httpx
from fastapi import FastAPI

from gateway.docs import OpenApi, install
from libs.common import problems
from libs.common.telemetry import Metrics

PATHS = {"/api/v1/vms": {"get": {"responses": {}}}}
PATIENCE_S = 5


async def test_documentation_is_told_without_a_service_that_hangs_or_answers_no_document() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth":
            assert request.extensions["timeout"]["read"] <= PATIENCE_S
            raise httpx.ReadTimeout("it hangs", request=request)
        if request.url.host == "images":
            return httpx.Response(200, html="<p>We are back in a moment.</p>")
        return httpx.Response(200, json={"openapi": "3.1.0", "paths": PATHS})

    urls = {name: (f"http://{name}",) for name in ("auth", "images", "vms")}
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), timeout=30) as http:
        merged = await OpenApi(FastAPI(), urls, http).merged()
    assert merged["paths"] == PATHS


async def test_a_problem_that_only_a_service_knows_is_explained_at_the_gateway_too() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth":
            raise httpx.ConnectError("it is away", request=request)
        known = (request.url.host, request.url.path) == ("vms", "/problems/known-to-one-service")
        return httpx.Response(200, html="<p>Make a new disk.</p>") if known else httpx.Response(404)

    app, urls = FastAPI(), {name: (f"http://{name}",) for name in ("auth", "images", "vms")} | {"fetcher": ()}
    problems.install(app, Metrics("gateway"))
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        install(app, OpenApi(app, urls, http))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            slugs = ("known-to-one-service", "quota-exceeded", "unheard-of", "No_slug")
            told = [await client.get(f"/problems/{slug}") for slug in slugs]
    assert [answer.status_code for answer in told] == [200, 200, 404, 404]
    assert "Make a new disk" in told[0].text
