"""The sweep: what no stack needs any more is removed: folders without records, code of revisions that are over."""

import contextlib
from collections.abc import Iterator
from uuid import UUID

import structlog

from libs.common.uow import UnitOfWorkFactory
from services.containers.domain.revisions import RevisionState, to_prune
from services.containers.domain.stacks import State
from services.containers.ports import CodeStore
from services.containers.repository import RevisionRepository, StackRepository

_LEAST_AGE_S = 3600.0

_log = structlog.get_logger()


class Sweeper:
    """Safe to run at any time on every replica: only folders that were left alone for an hour are looked at."""

    def __init__(
        self, uow: UnitOfWorkFactory, code: CodeStore, *, keep_revisions: int, least_age_s: float = _LEAST_AGE_S
    ) -> None:
        self._uow = uow
        self._code = code
        self._keep = keep_revisions
        self._least_age_s = least_age_s

    async def sweep(self) -> None:
        await self._sweep_folders()
        await self._prune_revisions()

    async def _prune_revisions(self) -> None:
        for stack_id, _ in await self._code.stored():
            with _apart(stack_id):
                await self._prune(stack_id)

    async def _prune(self, stack_id: UUID) -> None:
        """Forget revisions beyond the retention, and the working copies and archives that none of the others needs."""
        async with self._uow() as uow:
            stack = await StackRepository(uow.session).get(stack_id, for_update=True)
            if stack is None or State(stack.state) not in (State.RUNNING, State.STOPPED):
                return
            revisions = RevisionRepository(uow.session)
            kept = await revisions.of(stack_id)
            ended = [one.number for one in kept if one.state != RevisionState.PENDING]
            forgotten = set(to_prune(ended, stack.revision, self._keep))
            await revisions.remove(stack_id, forgotten)
            left = [one for one in kept if one.number not in forgotten]
            copies = {one.copy_number for one in left if one.number == stack.revision}
            archives = {one.archive for one in left if one.archive is not None}
            await uow.commit()
        removed = await self._code.prune(stack_id, copies=copies, archives=archives, least_age_s=self._least_age_s)
        if removed:
            _log.info("revisions_pruned", stack_id=str(stack_id), forgotten=sorted(forgotten), removed=removed)

    async def _sweep_folders(self) -> None:
        old = [stack_id for stack_id, age_s in await self._code.stored() if age_s > self._least_age_s]
        async with self._uow() as uow:
            stacks = StackRepository(uow.session)
            needed = await stacks.with_files(old)
            if old and not await stacks.any():
                # A database without a single stack beside folders is more likely the wrong database.
                _log.error("folders_without_records_kept", folders=len(old))
                return
        for stack_id in old:
            if stack_id not in needed:
                with _apart(stack_id):
                    await self._code.remove(stack_id)
                    _log.warning("orphan_folder_swept", stack_id=str(stack_id))


@contextlib.contextmanager
def _apart(stack_id: UUID) -> Iterator[None]:
    """One stack's files that cannot be removed must not keep those of all others."""
    try:
        yield
    except OSError as error:
        _log.warning("files_not_swept", stack_id=str(stack_id), error=type(error).__name__)
