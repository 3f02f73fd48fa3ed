"""The last steps of every way in that goes on after a restart, and the word about its end."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

from libs.common.operations import Json, Operation, State, Step, StepContext
from libs.common.uow import UnitOfWork
from services.images.service import Verification, lifecycle

LONG_S = 12 * 3600.0

Settle = Callable[[StepContext, Json], Awaitable[None]]
"""Looks at what was verified, before the image is active; raises what else is wrong with it."""


def verify_steps(verification: Verification, *, settle: Settle | None = None) -> tuple[Step, ...]:
    """The file is staged and its length known: judge it, make the image active; undone, nothing is left of either."""

    async def verify(context: StepContext) -> Json:
        async def progress(fraction: float) -> None:
            if context.cancelled:
                raise asyncio.CancelledError
            await context.progress(fraction)

        verified = await verification.verify(image_id(context), progress)
        if settle is not None:
            await settle(context, verified)
        return verified

    async def discard(context: StepContext) -> None:
        await verification.discard(image_id(context))

    async def activate(context: StepContext) -> None:
        await verification.activate(image_id(context), context.results["verify"])

    async def withdraw(context: StepContext) -> None:
        await verification.withdraw(image_id(context))

    return (
        Step("verify", verify, discard, timeout_s=LONG_S, weight=10, interruptible=False),
        Step("activate", activate, withdraw),
    )


def image_id(context: StepContext) -> UUID:
    return UUID(context.operation.resource_id)


async def tell_end(uow: UnitOfWork, operation: Operation) -> None:
    """Say on the image's record why it will never be one."""
    if operation.state in (State.FAILED, State.CANCELLED):
        detail = (operation.error or {}).get("detail")
        await lifecycle.reject(uow, UUID(operation.resource_id), str(detail or "The operation was cancelled"))
