"""`image.convert`: convert, verify, activate."""

from libs.common.operations import Saga, Step, StepContext
from services.images.operations.verifying import LONG_S, image_id, tell_end, verify_steps
from services.images.service import Conversions, Verification
from services.images.service.conversion import CONVERT

_ATTEMPTS = 3


def converting_saga(conversions: Conversions, verification: Verification, *, at_once: int) -> Saga:
    async def discard(context: StepContext) -> None:
        await verification.discard(image_id(context))

    return Saga(
        CONVERT,
        (
            Step("convert", conversions.convert, discard, timeout_s=LONG_S, max_attempts=_ATTEMPTS, weight=30),
            *verify_steps(verification),
        ),
        cancellable=True,
        on_end=tell_end,
        at_once=at_once,
    )
