"""Routes of what surrounds an image: its members, its provenance, the check of its file."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response

from libs.common.auth import CurrentUser
from libs.common.etag import IfMatch, set_etag
from libs.common.openapi import problems
from libs.common.operations_api import OperationView, accepted
from services.images.schemas import MembersIn, MembersOut, ProvenanceOut
from services.images.service import Integrity, Provenance, Sharing
from services.images.service.sharing import Shared

_BEGUN: dict[int | str, dict[str, Any]] = {202: {"model": OperationView, "description": "Begun; follow Location"}}
_NOT_FOUND = "No such image, or it is not shared with the caller"
_NOT_YOURS = "No such image, or it is not the caller's"


def add_sharing(routes: APIRouter, sharing: Sharing) -> None:
    @routes.get("/images/{image_id}/members", tags=["images"], responses=problems(_404=_NOT_FOUND))
    async def list_members(user: CurrentUser, image_id: UUID, response: Response) -> MembersOut:
        """The users with whom the image is shared: its owner sees all of them, a member only themselves."""
        return _shown(await sharing.members(user, image_id), response)

    @routes.put(
        "/images/{image_id}/members",
        tags=["images"],
        responses=problems(
            _404=_NOT_YOURS,
            _412="The image has changed",
            _422="Some members are not known; `errors` points to each of them",
        ),
    )
    async def replace_members(
        user: CurrentUser, image_id: UUID, wanted: MembersIn, response: Response, if_match: IfMatch = None
    ) -> MembersOut:
        """Share the image with these users (by id, name or external id) and nobody else.

        The list has an effect while the image's visibility is `shared`, as `effective` tells; it is kept when that
        changes. Members read, list and download the image, and change nothing.
        """
        return _shown(await sharing.replace(user, image_id, wanted.members, if_match=if_match), response)


def add_provenance(routes: APIRouter, provenance: Provenance) -> None:
    @routes.get("/images/{image_id}/provenance", tags=["images"], responses=problems(_404=_NOT_FOUND))
    async def get_provenance(user: CurrentUser, image_id: UUID) -> ProvenanceOut:
        """Where the image came from, its digests, what was seen in it, and what was made of it."""
        return await provenance.of(user, image_id)


def add_verification(routes: APIRouter, integrity: Integrity) -> None:
    @routes.post(
        "/images/{image_id}/verify",
        status_code=202,
        tags=["images"],
        response_class=Response,
        responses=_BEGUN | problems(_404=_NOT_YOURS, _409="The image has no file yet, or none any more"),
    )
    async def verify_image(user: CurrentUser, image_id: UUID) -> Response:
        """Read the stored file again now: the operation fails if it no longer has its digest, or is gone."""
        return accepted(await integrity.begin(user, image_id))


def _shown(shared: Shared, response: Response) -> MembersOut:
    set_etag(response, shared.image.version)
    return shared.members
