"""Images, their blobs, members and uses, and uploads in PostgreSQL, each in the caller's transaction."""

from services.images.repository.blobs import BlobRepository
from services.images.repository.images import ImageRepository
from services.images.repository.listing import ImageFilter, sort_value
from services.images.repository.members import MemberRepository
from services.images.repository.uploads import UploadRepository
from services.images.repository.uses import UseRepository

__all__ = [
    "BlobRepository",
    "ImageFilter",
    "ImageRepository",
    "MemberRepository",
    "UploadRepository",
    "UseRepository",
    "sort_value",
]
