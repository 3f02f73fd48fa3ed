"""Routes of images: upload, list, read, change, download, statistics."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.types import Scope

from libs.common.auth import CurrentUser, Principal, requires_scope
from libs.common.auth.dependencies import current_principal
from libs.common.etag import IfMatch
from libs.common.middleware import header
from libs.common.openapi import problems
from libs.common.pagination import PageQuery, page
from services.images.api import tus
from services.images.api.downloads import DownloadRoutes, add_downloads
from services.images.api.imports import add_imports
from services.images.api.multipart import MultipartFile
from services.images.api.sharing import add_provenance, add_sharing, add_verification
from services.images.api.views import image_out, shown
from services.images.domain import Format, Status, Visibility
from services.images.repository import ImageFilter, sort_value
from services.images.schemas import ImageDescription, ImageOut, ImagePage, ImagePatch, StatsOut, UploadOut
from services.images.service import (
    Catalog,
    Conversions,
    Downloads,
    Imports,
    Integrity,
    Provenance,
    ResumableUploads,
    Sharing,
    Uploads,
)
from services.images.settings import ImagesSettings

PREFIX = "/api/v1"
_UPLOAD_PATH = f"{PREFIX}/images/upload"
_NO_NUL = "^[^\\x00]*$"

Reader = Annotated[Principal, Depends(current_principal)]
"""A user, or another service of Telar."""


def streams_its_body(scope: Scope) -> bool:
    """Whether a request's handler reads the body in pieces and bounds it."""
    if scope["path"] == _UPLOAD_PATH:  # any other type is refused, and read only as far as bodies may go
        return (header(scope, b"content-type") or b"").lower().startswith(b"multipart/")
    return tus.streams_its_body(scope)


def _multipart_schema() -> dict[str, Any]:
    schema = ImageDescription.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    schema["properties"] = {
        "file": {"type": "string", "format": "binary", "description": "The image; its name ends in its format"},
        **schema["properties"],
        "visibility": {"type": "string", "enum": [value.value for value in Visibility], "default": "private"},
    }
    schema["required"] = ["file", *schema["required"]]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


_NOT_FOUND = "No such image, or it is not shared with the caller"


class ListQuery:
    """What a list may be narrowed to."""

    def __init__(
        self,
        name: Annotated[str | None, Query(max_length=200, pattern=_NO_NUL, description="Part of the name")] = None,
        os_type: Annotated[str | None, Query(max_length=64, pattern=_NO_NUL)] = None,
        architecture: Annotated[str | None, Query(max_length=32, pattern=_NO_NUL)] = None,
        format: Annotated[Format | None, Query()] = None,  # noqa: A002 - the parameter's name in the API
        status: Annotated[Status | None, Query()] = None,
        visibility: Annotated[Visibility | None, Query()] = None,
    ) -> None:
        self.filter = ImageFilter(name, os_type, architecture, format, status, visibility)


def router(
    catalog: Catalog,
    uploads: Uploads,
    resumable: ResumableUploads,
    downloads: Downloads,
    imports: Imports,
    conversions: Conversions,
    sharing: Sharing,
    provenance: Provenance,
    integrity: Integrity,
    settings: ImagesSettings,
) -> APIRouter:
    """Every route of the service's own."""
    routes = APIRouter(prefix=PREFIX, dependencies=[requires_scope("images")])
    _add_upload(routes, uploads, settings.upload_idle_s)
    add_imports(routes, imports, conversions)
    tus.add_tus(routes, resumable, idle_s=settings.upload_idle_s)
    _add_reading(routes, catalog)
    _add_changing(routes, catalog)
    add_sharing(routes, sharing)
    add_provenance(routes, provenance)
    add_verification(routes, integrity)
    handlers = DownloadRoutes(
        downloads, prefix=PREFIX, link_seconds=settings.link_seconds, public_url=settings.public_url
    )
    add_downloads(routes, handlers)
    return routes


def _add_upload(routes: APIRouter, uploads: Uploads, upload_idle_s: float) -> None:
    @routes.post(
        "/images/upload",
        status_code=201,
        tags=["images"],
        openapi_extra=_multipart_schema(),
        responses=problems(
            _400="The form cannot be read, or ended early",
            _409="The quota would be exceeded",
            _413="The file is too large",
            _415="Not multipart/form-data",
            _422="The image was rejected (with the reason), its digest is not the announced one, or a field is wrong",
            _507="No storage space is left",
        ),
    )
    async def upload_image(user: CurrentUser, request: Request, response: Response) -> UploadOut:
        """Upload an image in one request; it is inspected and hashed while it streams."""
        file = MultipartFile(request.headers.get("content-type"), request.stream(), idle_s=upload_idle_s)
        declared = request.headers.get("content-length")
        image = await uploads.upload(user.user_id, file, declared_bytes=int(declared) if declared else None)
        response.headers["location"] = f"{PREFIX}/images/{image.id}"
        return UploadOut(image=shown(image, response))


def _add_reading(routes: APIRouter, catalog: Catalog) -> None:
    @routes.get("/images", tags=["images"], responses=problems(_422="A filter, sort or cursor is wrong"))
    async def list_images(
        principal: Reader, query: Annotated[ListQuery, Depends()], request: PageQuery, http: Request, response: Response
    ) -> ImagePage:
        """The caller's own images, those shared with the caller and all public ones (everyone's for administrators)."""
        rows = await catalog.list(principal, query.filter, request)
        images, cursor = page(
            rows, request, position=lambda image: sort_value(image, request.sort), http=(http, response)
        )
        return ImagePage(items=[image_out(image) for image in images], next_cursor=cursor)

    @routes.get("/images/{image_id}", tags=["images"], responses=problems(_404=_NOT_FOUND))
    async def get_image(principal: Reader, image_id: UUID, response: Response) -> ImageOut:
        return shown(await catalog.get(principal, image_id), response)

    @routes.get("/stats", tags=["images"], responses=problems())
    async def get_stats(user: CurrentUser) -> StatsOut:
        """Sums over the caller's own images, and over all for administrators."""
        return await catalog.stats(user)


def _add_changing(routes: APIRouter, catalog: Catalog) -> None:
    changed = problems(_404=_NOT_FOUND, _409="The image's state or use does not allow it", _412="The image has changed")

    @routes.patch("/images/{image_id}", tags=["images"], responses=changed)
    async def patch_image(
        user: CurrentUser, image_id: UUID, change: ImagePatch, response: Response, if_match: IfMatch = None
    ) -> ImageOut:
        return shown(await catalog.patch(user, image_id, change, if_match=if_match), response)

    @routes.delete("/images/{image_id}", status_code=204, tags=["images"], responses=changed)
    async def delete_image(user: CurrentUser, image_id: UUID, if_match: IfMatch = None) -> Response:
        await catalog.delete(user, image_id, if_match=if_match)
        return Response(status_code=204)

    @routes.post("/images/{image_id}/deactivate", tags=["images"], responses=changed)
    async def deactivate_image(user: CurrentUser, image_id: UUID, response: Response) -> ImageOut:
        """Keep the image from being downloaded until it is activated again."""
        return shown(await catalog.deactivate(user, image_id), response)

    @routes.post("/images/{image_id}/activate", tags=["images"], responses=changed)
    async def activate_image(user: CurrentUser, image_id: UUID, response: Response) -> ImageOut:
        return shown(await catalog.activate(user, image_id), response)
