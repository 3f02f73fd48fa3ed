"""The catalog of images over HTTP, with a service token, or with a user's own where their right to see is asked."""

from typing import Any
from uuid import UUID

import httpx
import structlog

from libs.common.auth import ServiceTokens
from services.vms.errors import ImagesAway, ImageUnfit, ImageUnknown
from services.vms.ports import CatalogImage

_TIMEOUT_S = 10.0
_CONFLICT = 409
_UNSEEN = (401, 403, 404, 422)
_SERVER_ERRORS = 500

_log = structlog.get_logger()


class HttpImages:
    """Implements `ports.Images` on the images service's public routes."""

    def __init__(self, base_url: str, tokens: ServiceTokens, http: httpx.AsyncClient) -> None:
        self._base = base_url.rstrip("/") + "/api/v1/images"
        self._tokens = tokens
        self._http = http

    async def get(self, image_id: UUID, *, bearer: str | None = None) -> CatalogImage:
        told = await self._call("GET", f"{self._base}/{image_id}", bearer)
        try:
            return CatalogImage(
                id=UUID(told["id"]),
                owner_id=told["owner_id"],
                name=told["name"],
                os_type=told["os_type"],
                version=told["version"],
                format=told["format"],
                status=told["status"],
                visibility=told["visibility"],
                sha256=told["sha256"],
                virtual_size_bytes=int(told["virtual_size_bytes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ImagesAway("The images service's answer cannot be read", retry_after_s=5) from error

    async def link(self, image_id: UUID, *, expires_s: int) -> str:
        told = await self._call("POST", f"{self._base}/{image_id}/link", None, json={"expires_s": expires_s})
        return str(told.get("url", ""))

    async def _call(self, method: str, url: str, bearer: str | None, **options: Any) -> dict[str, Any]:
        headers = await self._tokens.headers() if bearer is None else {"authorization": f"Bearer {bearer}"}
        try:
            answer = await self._http.request(method, url, headers=headers, timeout=_TIMEOUT_S, **options)
        except httpx.HTTPError as error:
            raise ImagesAway("The images service cannot be reached", retry_after_s=2) from error
        if answer.status_code == _CONFLICT:
            raise ImageUnfit("The image is not active")
        if answer.status_code in _UNSEEN:
            raise ImageUnknown("There is no such image, or it is not shared with you")
        if answer.status_code >= _SERVER_ERRORS:
            raise ImagesAway("The images service has trouble", retry_after_s=2)
        try:
            told: dict[str, Any] = answer.json()
        except ValueError as error:
            raise ImagesAway("The images service's answer cannot be read", retry_after_s=5) from error
        return told
