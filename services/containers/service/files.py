"""The files of a stack's code: seen and changed as the services that mount them see them."""

from uuid import UUID

from libs.common.auth import Principal
from libs.common.uow import UnitOfWorkFactory
from services.containers.domain.archives import Caps
from services.containers.domain.stacks import State
from services.containers.errors import StackState
from services.containers.ports import CodeStore, Tree, Trees
from services.containers.repository import RevisionRepository
from services.containers.service.records import visible
from services.containers.settings import ContainersSettings


class Files:
    """For stacks that the caller may not see it raises StackNotFound."""

    def __init__(self, uow: UnitOfWorkFactory, code: CodeStore, trees: Trees, settings: ContainersSettings) -> None:
        self._uow = uow
        self._code = code
        self._trees = trees
        self._caps = Caps(max_bytes=settings.max_code_bytes, max_files=settings.max_code_files)

    async def tree(self, principal: Principal, stack_id: UUID, *, to_change: bool = False) -> Tree:
        """The code of the revision that runs; raises StackState if there is none, or (to change it) none settled."""
        async with self._uow() as uow:
            stack = await visible(uow, principal, stack_id)
            revision = await RevisionRepository(uow.session).get(stack_id, stack.revision)
        if revision is None:
            raise StackState(f"The stack is {stack.state} and has no files (yet)")
        if to_change and State(stack.state) not in (State.RUNNING, State.STOPPED):
            raise StackState(f"The stack is {stack.state}: wait for its operation to end")
        return self._trees(self._code.code_folder(stack_id, revision.copy_number), self._caps)
