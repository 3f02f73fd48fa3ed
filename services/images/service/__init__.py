"""Use cases of the images service."""

from services.images.service.catalog import Catalog
from services.images.service.conversion import Conversions
from services.images.service.downloads import Download, Downloads, Link
from services.images.service.imports import Imports
from services.images.service.integrity import Integrity, IntegrityMetrics
from services.images.service.provenance import Provenance
from services.images.service.resumable import ResumableUploads
from services.images.service.sharing import Sharing
from services.images.service.sweep import Sweeper
from services.images.service.uploads import Uploads
from services.images.service.uses import Uses
from services.images.service.verification import Verification

__all__ = [
    "Catalog",
    "Conversions",
    "Download",
    "Downloads",
    "Imports",
    "Integrity",
    "IntegrityMetrics",
    "Link",
    "Provenance",
    "ResumableUploads",
    "Sharing",
    "Sweeper",
    "Uploads",
    "Uses",
    "Verification",
]
