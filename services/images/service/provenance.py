"""Provenance: where an image came from, what was seen in it, what was made of it."""

from typing import Any
from uuid import UUID

from libs.common.auth import Principal
from libs.common.uow import UnitOfWork, UnitOfWorkFactory
from services.images.domain import Arrival, Format
from services.images.errors import ImageNotFound
from services.images.models import Image
from services.images.repository import BlobRepository, ImageRepository, UseRepository
from services.images.schemas import (
    BlobOut,
    DerivedOut,
    DigestsOut,
    InspectionOut,
    OriginOut,
    ProvenanceOut,
    SourceOut,
    UseOut,
)
from services.images.service.records import may_change, readable, reader_of

_LISTED = 100
"""How many derived images and how many uses are told."""
_FOR_ALL = {"kind", "filename"}


class Provenance:
    """Answers from the records; for who may not see an image it raises ImageNotFound."""

    def __init__(self, uow: UnitOfWorkFactory) -> None:
        self._uow = uow

    async def of(self, principal: Principal, image_id: UUID) -> ProvenanceOut:
        """All that is known of an image's past and offspring, without what the caller may not see."""
        async with self._uow() as uow:
            image = await readable(uow, principal, image_id)
            known = image.provenance
            reader_id = reader_of(principal)
            derived = await ImageRepository(uow.session).derived(image_id, reader_id=reader_id, limit=_LISTED)
            uses = await UseRepository(uow.session).of(image_id, owner_id=reader_id, limit=_LISTED)
            return ProvenanceOut(
                source=_source(known, whole=may_change(principal, image)),
                digests=DigestsOut(
                    sha256=image.sha256,
                    sha512=image.sha512,
                    expected_sha256=known.get("expected_sha256"),
                    downloaded_sha256=known.get("downloaded_sha256"),
                ),
                inspection=InspectionOut(**known["inspection"]) if "inspection" in known else None,
                inspected_at=known.get("inspected_at"),
                derived_from=await _origin(uow, principal, image),
                derived=[DerivedOut(id=one.id, name=one.name, format=Format(one.format)) for one in derived],
                used_by=[UseOut(type=use.kind, id=use.resource_id, name=use.name) for use in uses],
                blob=await _blob(uow, image),
            )


def _source(known: dict[str, Any], *, whole: bool) -> SourceOut:
    told = SourceOut.model_validate({"kind": Arrival.MULTIPART, **known})  # the first images have no provenance
    return told if whole else SourceOut.model_validate(told.model_dump(include=_FOR_ALL))


async def _origin(uow: UnitOfWork, principal: Principal, image: Image) -> OriginOut | None:
    if image.derived_from is None:
        return None
    try:
        source = await readable(uow, principal, image.derived_from)
    except ImageNotFound:
        sha256 = image.provenance.get("source_sha256") if may_change(principal, image) else None
        return OriginOut(id=image.derived_from, sha256=sha256)
    return OriginOut(id=source.id, name=source.name, sha256=source.sha256)


async def _blob(uow: UnitOfWork, image: Image) -> BlobOut | None:
    blob = None if image.sha256 is None else await BlobRepository(uow.session).get(image.sha256)
    return None if blob is None else BlobOut(verified_at=blob.verified_at, rotten_at=blob.rotten_at)
