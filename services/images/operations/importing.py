"""`image.import`: download, verify, activate."""

from sqlalchemy import update

from libs.common.operations import Json, Operation, Saga, Step, StepContext, operations_table
from libs.common.uow import UnitOfWork
from services.images.operations.verifying import LONG_S, image_id, tell_end, verify_steps
from services.images.service import Imports, Verification
from services.images.service.imports import IMPORT


def importing_saga(imports: Imports, verification: Verification, *, attempts: int, at_once: int) -> Saga:
    async def discard(context: StepContext) -> None:
        await verification.discard(image_id(context))

    async def settle(context: StepContext, verified: Json) -> None:
        expected = context.input.get("sha256")
        await imports.settle(image_id(context), context.results["download"], verified, expected)

    return Saga(
        IMPORT,
        (
            Step("download", imports.download, discard, timeout_s=LONG_S, max_attempts=attempts, weight=30),
            *verify_steps(verification, settle=settle),
        ),
        cancellable=True,
        on_end=_end,
        at_once=at_once,
    )


async def _end(uow: UnitOfWork, operation: Operation) -> None:
    """Tell the end, and forget the URL: its query may be a secret, and from now on nobody needs it."""
    await tell_end(uow, operation)
    known = operations_table.c
    connection = await uow.session.connection()
    await connection.execute(
        update(operations_table).where(known.id == operation.id).values(input=known.input.op("-")("url"))
    )
