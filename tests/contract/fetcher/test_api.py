"""What callers and consumers rely on: who may call which route, and what the events carry."""

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from libs.common.bus.local import LocalBus
from libs.common.quotas import OwnedPayload, ResourceRef, Usage
from libs.common.settings import CommonSettings
from libs.common.testing.identity import TestIssuer
from services.fetcher import events
from services.fetcher.main import create_app
from services.fetcher.settings import FetcherSettings

OPEN = {"/livez", "/readyz", "/metrics", "/problems/{slug}"}
CALLS = {
    ("POST", "/api/v1/download/collection/{database}/{collection}"),
    ("POST", "/api/v1/download/document/{database}/{collection}/{document_id}"),
    ("POST", "/api/v1/download/batch"),
    ("GET", "/api/v1/jobs"),
    ("GET", "/api/v1/jobs/{job_id}"),
    ("GET", "/api/v1/jobs/{job_id}/items"),
    ("GET", "/api/v1/jobs/{job_id}/events"),
    ("GET", "/api/v1/jobs/{job_id}/files/{path:path}"),
    ("GET", "/api/v1/jobs/{job_id}/export"),
    ("GET", "/api/v1/jobs/{job_id}/report"),
    ("POST", "/api/v1/jobs/{job_id}/cancel"),
    ("POST", "/api/v1/jobs/{job_id}/pause"),
    ("POST", "/api/v1/jobs/{job_id}/resume"),
    ("POST", "/api/v1/jobs/{job_id}/retry-failed"),
    ("DELETE", "/api/v1/jobs/{job_id}"),
    ("GET", "/api/v1/metrics"),
    ("GET", "/api/v1/dead-letters"),
    ("POST", "/api/v1/dead-letters/{letter_id}/replay"),
    ("DELETE", "/api/v1/dead-letters/{letter_id}"),
}


@pytest.fixture
def issuer() -> TestIssuer:
    return TestIssuer()


@pytest.fixture
async def app(tmp_path: Path, issuer: TestIssuer) -> FastAPI:
    """An app that is not started: who may call is decided before anything is asked."""
    common = CommonSettings(data_dir=tmp_path, service_secret=SecretStr("for-tests-only-0123456789abcdef"))
    settings = FetcherSettings(common=common, mongo_uri="mongodb://127.0.0.1:9")
    return create_app(settings, bus=LocalBus(), verifier=issuer.verifier())


def api_calls(app: FastAPI) -> set[tuple[str, str]]:
    paths = app.openapi()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods if path not in OPEN}


async def test_the_routes_are_those_of_the_contract(app: FastAPI) -> None:
    documented = {(method, path.replace(":path}", "}")) for method, path in CALLS}
    assert api_calls(app) == documented


async def test_no_route_answers_without_credentials_or_without_the_scope(app: FastAPI, issuer: TestIssuer) -> None:
    headers = issuer.headers("018f0000-0000-7000-8000-000000000001", scopes=("vms",))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fetcher") as http:
        for method, path in sorted(api_calls(app)):
            address = path.replace("{letter_id}", "018f0000-0000-7000-8000-000000000009")
            body = {"database": "a", "collection": "b"} if path.endswith("batch") else None
            assert (await http.request(method, address, json=body)).status_code == 401, path
            assert (await http.request(method, address, json=body, headers=headers)).status_code == 403, path


async def test_a_read_only_key_starts_nothing(app: FastAPI, issuer: TestIssuer) -> None:
    headers = issuer.headers("018f0000-0000-7000-8000-000000000001", scopes=("fetch:read",))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://fetcher") as http:
        answer = await http.post("/api/v1/download/collection/a/b", headers=headers)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "payload",
    [
        events.JobCreated,
        events.JobStarted,
        events.JobCompleted,
        events.JobFailed,
        events.JobCancelled,
        events.JobDeleted,
    ],
)
def test_auth_reads_ownership_and_usage_from_every_event(payload: type[events.JobPayload]) -> None:
    sent = payload(
        resource=ResourceRef(type="fetch_job", id="1", name="shop.products"),
        usage=Usage(used={"fetch_jobs": 1}, sequence=3),
        kind="collection",
        database="shop",
        collection="products",
        state="running",
    )
    read = OwnedPayload.model_validate(sent.model_dump(mode="json"))
    assert (read.resource, read.usage) == (sent.resource, sent.usage)
    assert payload.event_type.startswith("fetcher.job.")
