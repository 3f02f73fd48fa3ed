"""`image.rehash`: read an image's file once more."""

from libs.common.operations import Saga, Step, StepContext
from services.images.operations.verifying import LONG_S, image_id
from services.images.service import Integrity
from services.images.service.integrity import REHASH


def rehashing_saga(integrity: Integrity) -> Saga:
    async def rehash(context: StepContext) -> None:
        await integrity.check_image(image_id(context), context.progress)

    return Saga(REHASH, (Step("rehash", rehash, timeout_s=LONG_S),), cancellable=True, at_once=1)
