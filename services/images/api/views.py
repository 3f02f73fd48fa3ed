"""How images are shown."""

from fastapi import Response

from libs.common.etag import etag, set_etag
from services.images.domain import Format, Status, Visibility, human_size
from services.images.models import Image
from services.images.schemas import ImageOut


def shown(image: Image, response: Response) -> ImageOut:
    set_etag(response, image.version)
    return image_out(image)


def image_out(image: Image) -> ImageOut:
    return ImageOut(
        id=image.id,
        name=image.name,
        os=image.os_type,
        os_type=image.os_type,
        version=image.os_version,
        architecture=image.architecture,
        description=image.description,
        format=Format(image.format),
        size=human_size(image.size_bytes),
        size_bytes=image.size_bytes,
        virtual_size_bytes=image.virtual_size_bytes,
        sha256=image.sha256,
        sha512=image.sha512,
        status=Status(image.status),
        reason=image.reason,
        visibility=Visibility(image.visibility),
        protected=image.protected,
        tags=image.tags,
        min_disk_gib=image.min_disk_gib,
        min_memory_mib=image.min_memory_mib,
        derived_from=image.derived_from,
        downloads=image.downloads,
        owner_id=image.owner_id,
        created=image.created_at,
        created_at=image.created_at,
        updated_at=image.updated_at,
        etag=etag(image.version),
    )
