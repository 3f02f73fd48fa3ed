"""The merged documentation beside services that do not answer, or not with a document."""

import httpx
from fastapi import FastAPI

from gateway.docs import OpenApi

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
