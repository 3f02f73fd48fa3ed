"""The documentation of the whole: every service's OpenAPI merged into one, and each one's own page."""

import asyncio
import copy
import re
import time
from collections.abc import Mapping
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import HTMLResponse

from gateway.aggregate import PATIENCE_S
from gateway.errors import ServiceAbsent
from libs.common.docs import mount_assets, redoc_page, swagger_page
from libs.common.errors import NotFound
from libs.common.problems import problem_page

_KEEP_S = 60.0
_OWN_PATHS = ("/livez", "/readyz", "/problems/")
_SLUG = re.compile(r"[a-z0-9-]{1,80}")


class OpenApi:
    """Fetches the services' OpenAPI documents and merges them with the gateway's own."""

    def __init__(self, app: FastAPI, urls: Mapping[str, tuple[str, ...]], http: httpx.AsyncClient) -> None:
        self._app = app
        self._urls = urls
        self._http = http
        self._kept: dict[str, tuple[float, dict[str, Any]]] = {}

    async def of_service(self, service: str) -> dict[str, Any]:
        """A service's own document; raises ServiceAbsent if it is not installed or does not answer."""
        kept = self._kept.get(service)
        if kept is not None and kept[0] > time.monotonic():
            return kept[1]
        for url in self._urls.get(service, ()):
            try:
                answer = await self._http.get(url.rstrip("/") + "/openapi.json", timeout=PATIENCE_S)
                answer.raise_for_status()
                document: dict[str, Any] = answer.json()
            except (httpx.HTTPError, ValueError):
                continue
            self._kept[service] = (time.monotonic() + _KEEP_S, document)
            return document
        raise ServiceAbsent(f"The service {service!r} is not installed or does not answer", retry_after_s=5)

    async def merged(self) -> dict[str, Any]:
        """One document of all services that answer; schemas are prefixed where names collide."""
        merged = copy.deepcopy(self._app.openapi())
        for service in self._urls:
            try:
                document = await self.of_service(service)
            except ServiceAbsent:
                continue
            _merge(merged, copy.deepcopy(document), service)
        return merged

    async def problem(self, slug: str) -> Response:
        """The page of a problem: the gateway's own, or whichever service's knows it; raises NotFound."""
        if _SLUG.fullmatch(slug):
            pages = [problem_page(slug)]
            if pages == [None]:
                pages = await asyncio.gather(*(self._problem_of(service, slug) for service in self._urls))
            for page in filter(None, pages):
                return page
        raise NotFound("There is no such problem type")

    async def _problem_of(self, service: str, slug: str) -> Response | None:
        for url in self._urls[service][:1]:
            try:
                answer = await self._http.get(f"{url.rstrip('/')}/problems/{slug}", timeout=PATIENCE_S)
            except httpx.HTTPError:
                return None
            if answer.is_success:
                return HTMLResponse(answer.text)
        return None


def _merge(into: dict[str, Any], document: dict[str, Any], service: str) -> None:
    components = into.setdefault("components", {})
    renamed: dict[str, str] = {}
    for kind, members in document.get("components", {}).items():
        target = components.setdefault(kind, {})
        for name, member in members.items():
            if name in target and target[name] != member:
                renamed[f"#/components/{kind}/{name}"] = f"#/components/{kind}/{service}_{name}"
                target[f"{service}_{name}"] = member
            else:
                target[name] = member
    if renamed:
        for kind in components:
            for name, member in components[kind].items():
                if name in document.get("components", {}).get(kind, {}) or name.startswith(f"{service}_"):
                    components[kind][name] = _repointed(member, renamed)
        document["paths"] = _repointed(document["paths"], renamed)
    for path, item in document.get("paths", {}).items():
        if not path.startswith(_OWN_PATHS):
            into["paths"].setdefault(path, item)


def _repointed(node: Any, renamed: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {
            key: renamed.get(value, value) if key == "$ref" and isinstance(value, str) else _repointed(value, renamed)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_repointed(item, renamed) for item in node]
    return node


def install(app: FastAPI, openapi: OpenApi) -> None:
    """Serve /openapi.json, /docs, /redoc, /docs/<service> with its document, and /problems/<slug>."""
    mount_assets(app)
    routes = APIRouter(include_in_schema=False)

    @routes.get("/openapi.json")
    async def merged() -> dict[str, Any]:
        return await openapi.merged()

    @routes.get("/docs")
    async def swagger() -> HTMLResponse:
        return swagger_page("Telar", "/openapi.json")

    @routes.get("/redoc")
    async def redoc() -> HTMLResponse:
        return redoc_page("Telar", "/openapi.json")

    @routes.get("/problems/{slug}")
    async def problem(slug: str) -> Response:
        return await openapi.problem(slug)

    @routes.get("/docs/{service}/openapi.json")
    async def of_service(service: str) -> dict[str, Any]:
        return await openapi.of_service(service)

    @routes.get("/docs/{service}")
    async def swagger_of(service: str) -> HTMLResponse:
        await openapi.of_service(service)
        return swagger_page(f"Telar {service}", f"/docs/{service}/openapi.json")

    app.include_router(routes)
