"""The slow work of the images service, as sagas for the shared runner."""

from collections.abc import Sequence

from libs.common.operations import Saga
from services.images.operations.converting import converting_saga
from services.images.operations.importing import importing_saga
from services.images.operations.rehashing import rehashing_saga
from services.images.operations.verifying import tell_end, verify_steps
from services.images.service import Conversions, Imports, Integrity, Verification
from services.images.service.verification import RESOURCE, VERIFY
from services.images.settings import ImagesSettings

__all__ = ["RESOURCE", "VERIFY", "sagas", "tell_end", "verify_steps"]


def sagas(
    verification: Verification,
    imports: Imports,
    conversions: Conversions,
    integrity: Integrity,
    settings: ImagesSettings,
) -> Sequence[Saga]:
    """Every kind of operation on images."""
    return (
        Saga(VERIFY, verify_steps(verification), on_end=tell_end),
        importing_saga(imports, verification, attempts=settings.import_attempts, at_once=settings.imports),
        converting_saga(conversions, verification, at_once=settings.conversions),
        rehashing_saga(integrity),
    )
