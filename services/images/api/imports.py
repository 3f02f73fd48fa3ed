"""Routes of images that Telar gets by itself: from a URL, or out of another image."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response

from libs.common.auth import CurrentUser
from libs.common.openapi import problems
from libs.common.operations import Operation
from libs.common.operations_api import OperationView, accepted
from services.images.api.views import image_out
from services.images.models import Image
from services.images.schemas import ConvertRequest, ImageOut, ImportRequest
from services.images.service import Conversions, Imports


class BegunOut(OperationView):
    """An operation and the image that it will make active."""

    image: ImageOut


_BEGUN: dict[int | str, dict[str, Any]] = {202: {"model": BegunOut, "description": "Begun; follow Location"}}


def add_imports(routes: APIRouter, imports: Imports, conversions: Conversions) -> None:
    @routes.post(
        "/images/import",
        status_code=202,
        tags=["images"],
        response_class=Response,
        responses=_BEGUN
        | problems(
            _409="The quota is used up",
            _422="The URL is not allowed, nothing tells the format, or a field is wrong",
        ),
    )
    async def import_image(user: CurrentUser, wish: ImportRequest) -> Response:
        """Download an image from a URL; .gz, .xz and .zst files are unpacked. `sha256` may be of either file."""
        return _begun(*await imports.begin(user.user_id, wish))

    @routes.post(
        "/images/{image_id}/convert",
        status_code=202,
        tags=["images"],
        response_class=Response,
        responses=_BEGUN
        | problems(
            _404="No such image, or it is not shared with the caller",
            _409="The image is not active or no disk, or the quota is used up",
            _413="The converted image would be too large",
            _422="The image cannot be brought into this format",
            _503="The server has no converter; the answer says what to install",
        ),
    )
    async def convert_image(user: CurrentUser, image_id: UUID, wish: ConvertRequest) -> Response:
        """Make a new image of the caller's out of one that the caller may read, in another format."""
        return _begun(*await conversions.begin(user, image_id, wish))


def _begun(image: Image, operation: Operation) -> Response:
    return accepted(operation, image=image_out(image).model_dump(mode="json"))
