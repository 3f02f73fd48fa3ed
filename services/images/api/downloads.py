"""Routes of downloads: the file itself, a redirect to where it can be had without a login, such links for programs."""

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from opentelemetry import trace
from pydantic import BaseModel, ConfigDict, Field

from libs.common.auth import Principal
from libs.common.auth.dependencies import current_principal
from libs.common.openapi import problems
from services.images.adapters.links import file_name
from services.images.api import files
from services.images.service import Downloads, Link

MAX_LINK_SECONDS = 86_400
_NO_STORE = "no-store"
_FILES = "/image-files"
"""Beside /images, so that the gateway lets anybody in here and nobody there."""

Reader = Annotated[Principal, Depends(current_principal)]
"""A user, or another service of Telar."""


class LinkRequest(BaseModel):
    """How long a link shall be good for."""

    model_config = ConfigDict(extra="forbid")

    expires_s: int | None = Field(default=None, ge=1, le=MAX_LINK_SECONDS)
    """To begin a download within; the service's own default if not given."""


class LinkOut(BaseModel):
    """Where a file can be had without a login, until when."""

    url: str
    expires_at: datetime


class DownloadRoutes:
    """The handlers; `link_seconds` is how long a link is good for, `public_url` the gateway's address."""

    def __init__(self, downloads: Downloads, *, prefix: str, link_seconds: int, public_url: str | None) -> None:
        self._downloads = downloads
        self._prefix = prefix
        self._link_seconds = link_seconds
        self._public_url = (public_url or "").rstrip("/")

    async def download_image(
        self,
        principal: Reader,
        image_id: UUID,
        request: Request,
        *,
        redirect: Annotated[bool, Query(description="Answer with a link that needs no login")] = False,
    ) -> Response:
        """The image's file, or one range of it; `ETag` is its SHA-256 digest."""
        if redirect:
            return await self._redirect(principal, image_id, request)
        download = await self._downloads.open(principal, image_id)
        return await files.answer(request, download, count=lambda: self._downloads.count(image_id))

    async def download_linked(
        self,
        token: str,
        filename: str,  # noqa: ARG002 - stands in the URL for programs that name files after it
        request: Request,
    ) -> Response:
        """The image's file, for whoever has the link."""
        trace.get_current_span().set_attribute("url.path", f"{self._prefix}{_FILES}/[redacted]")
        download = await self._downloads.open_linked(token)
        return await files.answer(request, download, count=lambda: self._downloads.count(download.image.id))

    async def make_link(
        self,
        principal: Reader,
        image_id: UUID,
        request: Request,
        response: Response,
        wanted: Annotated[LinkRequest | None, Body()] = None,
    ) -> LinkOut:
        """A link to the image's file that needs no login, for programs such as a hypervisor.

        A link to the blob store itself counts as a download at once, because what becomes of it is not seen here.
        """
        response.headers["cache-control"] = _NO_STORE
        expires_s = self._link_seconds if wanted is None else wanted.expires_s or self._link_seconds
        link = await self._downloads.link(principal, image_id, expires_s=expires_s)
        if link.url is not None:
            await self._downloads.count(image_id)
        url = link.url or f"{self._public_url or _own_url(request)}{self._path(link)}"
        return LinkOut(url=url, expires_at=link.expires_at)

    async def _redirect(self, principal: Principal, image_id: UUID, request: Request) -> Response:
        link = await self._downloads.link(principal, image_id, expires_s=self._link_seconds)
        target = self._path(link)
        if link.url is not None and request.method == "GET":  # of which alone S3's signature is good
            await self._downloads.count(image_id)
            target = link.url
        return RedirectResponse(target, 307, headers={"cache-control": _NO_STORE})

    def _path(self, link: Link) -> str:
        return f"{self._prefix}{_FILES}/{link.token}/{quote(file_name(link.image.name, link.image.format), safe='')}"


def add_downloads(routes: APIRouter, handlers: DownloadRoutes) -> None:
    refusals = {"_404": "No such image, or it is not shared with the caller", "_409": "The image is not active"}
    path = "/images/{image_id}/download"
    routes.add_api_route(
        path,
        handlers.download_image,
        methods=["GET"],
        tags=["images"],
        response_class=Response,
        responses={
            200: {"description": "The whole file", "content": {"application/octet-stream": {}}},
            206: {"description": "The range that was asked for"},
            304: {"description": "The client has it already"},
            307: {"description": "Where the file can be had without a login, if `redirect` was asked for"},
            **problems(**refusals, _416="The file has no such range"),
        },
    )
    hidden: dict[str, Any] = {"include_in_schema": False, "response_class": Response}
    routes.add_api_route(path, handlers.download_image, methods=["HEAD"], name="download_image_head", **hidden)
    linked = _FILES + "/{token}/{filename}"
    routes.add_api_route(linked, handlers.download_linked, methods=["GET"], **hidden)
    routes.add_api_route(linked, handlers.download_linked, methods=["HEAD"], name="download_linked_head", **hidden)
    routes.add_api_route(
        "/images/{image_id}/link",
        handlers.make_link,
        methods=["POST"],
        tags=["images"],
        responses=problems(**refusals, _422="The time is longer than a day"),
    )


def _own_url(request: Request) -> str:
    """The address that the caller itself used, so that a false one misleads nobody else."""
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    return f"{scheme}://{request.headers.get('x-forwarded-host', request.url.netloc)}"
